// The step of a convolutional network on a device, besides its matrix products. Activations are NHWC: neighbours in
// memory are channels of one pixel. No kernel adds atomically, so a sum has one order and a step one result.
#include "portable.h"

// Windows as rows: x (images, h, w, units) to (images * oh * ow, k * k, units), zero outside the image. A unit is
// whatever is copied at a time, one channel or several.
#define IM2COL(NAME, UNIT)                                                                       \
    KERNEL NAME(TAKES) {                                                                         \
        const UNIT *x = (const UNIT *)first;                                                     \
        UNIT *out = (UNIT *)to;                                                                  \
        const int h = s.n[0], w = s.n[1], k = s.n[3], stride = s.n[4], padding = s.n[5];         \
        const unsigned units = s.n[2], oh = s.n[6], ow = s.n[7];                                 \
        (void)second, (void)third;                                                               \
        EACH(i, work) {                                                                          \
            const unsigned unit = i % units, row = i / units / (k * k);                          \
            const int tap = i / units % (k * k);                                                 \
            const unsigned image = row / (oh * ow);                                              \
            const int y = (int)(row / ow % oh) * stride + tap / k - padding;                     \
            const int z = (int)(row % ow) * stride + tap % k - padding;                          \
            UNIT value = {0};                                                                    \
            if (y >= 0 && y < h && z >= 0 && z < w) value = x[((image * h + y) * w + z) * units + unit]; \
            out[i] = value;                                                                      \
        }                                                                                        \
    }

IM2COL(im2col_2, unsigned short)
IM2COL(im2col_4, unsigned)
IM2COL(im2col_8, unsigned long long)
IM2COL(im2col_16, sixteen)

// T is how a number is stored, W what is computed in.
#define T float
#define W float
#define NAME(of) of##_f32
#define WIDE wide_f32
#define NARROW narrow_f32
#include "typed.h"

#define T double
#define W double
#define NAME(of) of##_f64
#define WIDE wide_f64
#define NARROW narrow_f64
#include "typed.h"

#define T bf16
#define W float
#define NAME(of) of##_bf16
#define WIDE wide_bf16
#define NARROW narrow_bf16
#include "typed.h"
