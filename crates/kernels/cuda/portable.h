// One source for two compilers. nvcc makes kernels of it; a C compiler makes plain functions, in which what a card does
// side by side is done in loops, so that a machine without a card can check every index and every sum.
#ifndef PORTABLE_H
#define PORTABLE_H

#define BLOCK 256

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define FN static __device__ __forceinline__
#define SHARED __shared__
#define ALIGNED(bytes) __align__(bytes)
// Items are dealt to all threads of the grid.
#define EACH(i, work) for (unsigned i = blockIdx.x * BLOCK + threadIdx.x; i < (work); i += gridDim.x * BLOCK)
// A block at a time; inside it, what every thread does, and where they wait for each other.
#define BLOCKS(b, count) for (unsigned b = blockIdx.x; b < (count); b += gridDim.x)
#define THREADS(t) for (unsigned t = threadIdx.x, once = 1; once; once = 0)
#define MEET __syncthreads()
#else
#include <math.h>
#define KERNEL void
#define FN static inline
#define SHARED
#define ALIGNED(bytes)
#define EACH(i, work) for (unsigned i = 0; i < (work); i++)
#define BLOCKS(b, count) for (unsigned b = 0; b < (count); b++)
#define THREADS(t) for (unsigned t = 0; t < BLOCK; t++)
#define MEET ((void)0)
#endif

// All kernels take the same: how many items (or blocks), up to three inputs, an output, and numbers.
typedef struct {
    int n[12];
    double x[4];
} Numbers;

#define TAKES unsigned work, const void *first, const void *second, const void *third, void *to, Numbers s

typedef unsigned short bf16;

FN float wide_bf16(bf16 value) {
    union {
        unsigned bits;
        float number;
    } as;
    as.bits = (unsigned)value << 16;
    return as.number;
}

// To the nearest, ties to even; a NaN stays one.
FN bf16 narrow_bf16(float value) {
    union {
        unsigned bits;
        float number;
    } as;
    as.number = value;
    if ((as.bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((as.bits >> 16) | 0x40u);
    return (bf16)((as.bits + 0x7fffu + ((as.bits >> 16) & 1u)) >> 16);
}

FN float wide_f32(float value) { return value; }
FN float narrow_f32(float value) { return value; }
FN double wide_f64(double value) { return value; }
FN double narrow_f64(double value) { return value; }

typedef struct ALIGNED(16) {
    unsigned long long a, b;
} sixteen;

#endif
