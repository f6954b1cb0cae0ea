// The kernels of one type: see device.cu. Rows of a table (5, c) that BatchNorm works by, in W:
//   mean, variance, 1 / sqrt(variance + eps), gamma times that, beta.

#define PACK NAME(pack)
typedef struct ALIGNED(4 * sizeof(T)) {
    T of[4];
} PACK;

// The adjoint of im2col: rows (images * oh * ow, k * k, c) are added up where they came from, (images, h, w, c). Each
// pixel asks which windows saw it. `LANES` channels at a time.
#define COL2IM(KIND, LANES, ITEM)                                                                \
    KERNEL NAME(KIND)(TAKES) {                                                                   \
        const ITEM *rows = (const ITEM *)first;                                                  \
        ITEM *out = (ITEM *)to;                                                                  \
        const int k = s.n[3], stride = s.n[4], padding = s.n[5], oh = s.n[6], ow = s.n[7];       \
        const unsigned h = s.n[0], w = s.n[1], units = s.n[2];                                   \
        (void)second, (void)third;                                                               \
        EACH(i, work) {                                                                          \
            const unsigned unit = i % units, image = i / units / w / h;                          \
            const int y = (int)(i / units / w % h) + padding, z = (int)(i / units % w) + padding; \
            W sum[LANES];                                                                        \
            for (int lane = 0; lane < LANES; lane++) sum[lane] = 0;                              \
            for (int a = 0; a < k; a++) {                                                        \
                if (y < a || (y - a) % stride || (y - a) / stride >= oh) continue;               \
                for (int b = 0; b < k; b++) {                                                    \
                    if (z < b || (z - b) % stride || (z - b) / stride >= ow) continue;           \
                    const unsigned row = (image * oh + (y - a) / stride) * ow + (z - b) / stride; \
                    const ITEM item = rows[(row * k * k + a * k + b) * units + unit];            \
                    for (int lane = 0; lane < LANES; lane++) sum[lane] += WIDE(item.of[lane]);   \
                }                                                                                \
            }                                                                                    \
            ITEM item;                                                                           \
            for (int lane = 0; lane < LANES; lane++) item.of[lane] = NARROW(sum[lane]);          \
            out[i] = item;                                                                       \
        }                                                                                        \
    }

#define ONE NAME(one)
typedef struct {
    T of[1];
} ONE;

COL2IM(col2im, 1, ONE)
COL2IM(col2im4, 4, PACK)

// A weight (outputs, inputs, taps) in W as the right side of a product, (taps * inputs, outputs) in T.
KERNEL NAME(pack_weight)(TAKES) {
    const W *weight = (const W *)first;
    T *out = (T *)to;
    const unsigned outputs = s.n[0], inputs = s.n[1], taps = s.n[2];
    (void)second, (void)third;
    EACH(i, work) {
        const unsigned output = i % outputs, input = i / outputs % inputs, tap = i / outputs / inputs;
        out[i] = NARROW(weight[(output * inputs + input) * taps + tap]);
    }
}

// The reverse, of its gradient.
KERNEL NAME(unpack_weight)(TAKES) {
    const T *packed = (const T *)first;
    W *out = (W *)to;
    const unsigned outputs = s.n[0], inputs = s.n[1], taps = s.n[2];
    (void)second, (void)third;
    EACH(i, work) {
        const unsigned tap = i % taps, input = i / taps % inputs, output = i / taps / inputs;
        out[i] = WIDE(packed[(tap * inputs + input) * outputs + output]);
    }
}

// Means of x (rows, c) over `span` rows at a time, and sums of squared distances from them: (2, spans, c). Of one span
// and channel each.
KERNEL NAME(moments)(TAKES) {
    const T *x = (const T *)first;
    W *out = (W *)to;
    const unsigned rows = s.n[0], c = s.n[1], span = s.n[2];
    (void)second, (void)third;
    EACH(i, work) {
        const unsigned from = i / c * span, end = from + span < rows ? from + span : rows;
        const T *column = x + i % c;
        W sum = 0, squares = 0;
        for (unsigned row = from; row < end; row++) sum += WIDE(column[row * c]);
        const W mean = sum / (W)(end - from);
        for (unsigned row = from; row < end; row++) {
            const W distance = WIDE(column[row * c]) - mean;
            squares += distance * distance;
        }
        out[i] = mean;
        out[work + i] = squares;
    }
}

// The spans' moments (2, spans, c) as one, by Chan's rule, and with gamma and beta (2, c) the table. A block has 32
// channels; 8 of its threads share one.
KERNEL NAME(moments_merge)(TAKES) {
    const W *spans = (const W *)first, *gamma = (const W *)second;
    W *table = (W *)to;
    const unsigned rows = s.n[0], c = s.n[1], span = s.n[2], count = (rows + span - 1) / span;
    SHARED double seen[BLOCK], means[BLOCK], squares[BLOCK];
    (void)third;
    BLOCKS(b, work) {
        THREADS(t) {
            const unsigned channel = b * 32 + t % 32;
            double n = 0, mean = 0, square = 0;
            if (channel < c) {
                for (unsigned i = t / 32; i < count; i += BLOCK / 32) {
                    const double more = i + 1 < count ? span : rows - i * span;
                    const double step = spans[i * c + channel] - mean;
                    mean += step * more / (n + more);
                    square += spans[(count + i) * c + channel] + step * step * n * more / (n + more);
                    n += more;
                }
            }
            seen[t] = n, means[t] = mean, squares[t] = square;
        }
        MEET;
        THREADS(t) {
            const unsigned channel = b * 32 + t;
            if (t < 32 && channel < c) {
                double n = seen[t], mean = means[t], square = squares[t];
                for (unsigned other = t + 32; other < BLOCK; other += 32) {
                    const double more = seen[other], step = means[other] - mean;
                    if (more == 0) continue;
                    mean += step * more / (n + more);
                    square += squares[other] + step * step * n * more / (n + more);
                    n += more;
                }
                const double inverse = 1 / sqrt(square / n + s.x[0]);
                table[channel] = (W)mean;
                table[c + channel] = (W)(square / n);
                table[2 * c + channel] = (W)inverse;
                table[3 * c + channel] = (W)(inverse * gamma[channel]);
                table[4 * c + channel] = gamma[c + channel];
            }
        }
        MEET;
    }
}

// The table of known means and variances (2, c).
KERNEL NAME(table)(TAKES) {
    const W *known = (const W *)first, *gamma = (const W *)second;
    W *table = (W *)to;
    const unsigned c = work;
    (void)third;
    EACH(channel, work) {
        const double inverse = 1 / sqrt(known[c + channel] + s.x[0]);
        table[channel] = known[channel];
        table[c + channel] = known[c + channel];
        table[2 * c + channel] = (W)inverse;
        table[3 * c + channel] = (W)(inverse * gamma[channel]);
        table[4 * c + channel] = gamma[c + channel];
    }
}

// BatchNorm by a table, and a ReLU behind it if asked.
KERNEL NAME(normalize)(TAKES) {
    const T *x = (const T *)first;
    const W *table = (const W *)second;
    T *out = (T *)to;
    const unsigned c = s.n[0];
    const int relu = s.n[1];
    (void)third;
    EACH(i, work) {
        const unsigned channel = i % c;
        const W y = (WIDE(x[i]) - table[channel]) * table[3 * c + channel] + table[4 * c + channel];
        out[i] = NARROW(relu && !(y > 0) ? (y != y ? y : 0) : y);
    }
}

// What reaches BatchNorm's own output of a gradient: nothing where the ReLU is shut.
#define OPEN (!relu || (WIDE(x[at]) - table[channel]) * table[3 * c + channel] + table[4 * c + channel] > 0)

// Sums over `span` rows at a time of the gradient g (rows, c) and of g times normalized x: (2, spans, c).
KERNEL NAME(gradient_sums)(TAKES) {
    const T *x = (const T *)first, *g = (const T *)second;
    const W *table = (const W *)third;
    W *out = (W *)to;
    const unsigned rows = s.n[0], c = s.n[1], span = s.n[2];
    const int relu = s.n[3];
    EACH(i, work) {
        const unsigned from = i / c * span, end = from + span < rows ? from + span : rows, channel = i % c;
        W sum = 0, scaled = 0;
        for (unsigned row = from; row < end; row++) {
            const unsigned at = row * c + channel;
            if (!OPEN) continue;
            sum += WIDE(g[at]);
            scaled += WIDE(g[at]) * ((WIDE(x[at]) - table[channel]) * table[2 * c + channel]);
        }
        out[i] = sum;
        out[work + i] = scaled;
    }
}

// The spans' sums (2, spans, c) as one, behind a copy of the table: (7, c), the last rows gamma's and beta's gradient.
KERNEL NAME(gradient_merge)(TAKES) {
    const W *spans = (const W *)first, *table = (const W *)second;
    W *out = (W *)to;
    const unsigned c = s.n[0], count = s.n[1];
    SHARED double sums[BLOCK], scaled[BLOCK];
    (void)third;
    BLOCKS(b, work) {
        THREADS(t) {
            const unsigned channel = b * 32 + t % 32;
            double sum = 0, more = 0;
            if (channel < c) {
                for (unsigned i = t / 32; i < count; i += BLOCK / 32) {
                    sum += spans[i * c + channel];
                    more += spans[(count + i) * c + channel];
                }
            }
            sums[t] = sum, scaled[t] = more;
        }
        MEET;
        THREADS(t) {
            const unsigned channel = b * 32 + t;
            if (t < 32 && channel < c) {
                double sum = sums[t], more = scaled[t];
                for (unsigned other = t + 32; other < BLOCK; other += 32) {
                    sum += sums[other];
                    more += scaled[other];
                }
                for (int row = 0; row < 5; row++) out[row * c + channel] = table[row * c + channel];
                out[5 * c + channel] = (W)more;
                out[6 * c + channel] = (W)sum;
            }
        }
        MEET;
    }
}

// The gradient of BatchNorm's input by such a table (7, c); in training means and variances are functions of it too.
KERNEL NAME(normalize_back)(TAKES) {
    const T *x = (const T *)first, *g = (const T *)second;
    const W *table = (const W *)third;
    T *out = (T *)to;
    const unsigned c = s.n[0];
    const int relu = s.n[1], train = s.n[2];
    const W share = (W)(1 / s.x[0]);
    EACH(at, work) {
        const unsigned channel = at % c;
        W d = OPEN ? WIDE(g[at]) : 0;
        if (train) {
            const W normal = (WIDE(x[at]) - table[channel]) * table[2 * c + channel];
            d -= (table[6 * c + channel] + normal * table[5 * c + channel]) * share;
        }
        out[at] = NARROW(d * table[3 * c + channel]);
    }
}
#undef OPEN

// The largest of a window, or its mean: x (images, h, w, c) to (images, oh, ow, c). No maximum sees the padding; a mean
// counts it as zeros, but nothing behind it. The number that a mean divides by, too.
KERNEL NAME(pool)(TAKES) {
    const T *x = (const T *)first;
    T *out = (T *)to;
    const int h = s.n[0], w = s.n[1], k = s.n[3], stride = s.n[4], padding = s.n[5], max = s.n[8];
    const unsigned c = s.n[2], oh = s.n[6], ow = s.n[7];
    (void)second, (void)third;
    EACH(i, work) {
        const unsigned channel = i % c, image = i / c / ow / oh;
        const int top = (int)(i / c / ow % oh) * stride - padding, left = (int)(i / c % ow) * stride - padding;
        const int bottom = top + k < h + padding ? top + k : h + padding;
        const int right = left + k < w + padding ? left + k : w + padding;
        W sum = 0, largest = 0;
        int any = 0;
        for (int y = top > 0 ? top : 0; y < bottom && y < h; y++) {
            for (int z = left > 0 ? left : 0; z < right && z < w; z++) {
                const W value = WIDE(x[((image * h + y) * w + z) * c + channel]);
                sum += value;
                if (!any || value > largest || value != value) largest = value;
                any = 1;
            }
        }
        out[i] = NARROW(max ? largest : sum / (W)((bottom - top) * (right - left)));
    }
}

// Its gradient: to the first of a window's largest, or to all alike. Each pixel asks the windows that see it.
KERNEL NAME(pool_back)(TAKES) {
    const T *x = (const T *)first, *g = (const T *)second;
    T *out = (T *)to;
    const int h = s.n[0], w = s.n[1], k = s.n[3], stride = s.n[4], padding = s.n[5], oh = s.n[6], ow = s.n[7];
    const unsigned c = s.n[2];
    const int max = s.n[8];
    (void)third;
    EACH(i, work) {
        const unsigned channel = i % c, image = i / c / w / h;
        const int y = (int)(i / c / w % h), z = (int)(i / c % w);
        const int first_row = y + padding < k ? 0 : (y + padding - k) / stride + 1;
        const int first_column = z + padding < k ? 0 : (z + padding - k) / stride + 1;
        W sum = 0;
        for (int oy = first_row; oy < oh && oy * stride - padding <= y; oy++) {
            for (int oz = first_column; oz < ow && oz * stride - padding <= z; oz++) {
                const int top = oy * stride - padding, left = oz * stride - padding;
                const int bottom = top + k < h + padding ? top + k : h + padding;
                const int right = left + k < w + padding ? left + k : w + padding;
                const W of = WIDE(g[((image * oh + oy) * ow + oz) * c + channel]);
                if (!max) {
                    sum += of / (W)((bottom - top) * (right - left));
                    continue;
                }
                W largest = 0;
                int at = -1;
                for (int a = top > 0 ? top : 0; a < bottom && a < h; a++) {
                    for (int b = left > 0 ? left : 0; b < right && b < w; b++) {
                        const W value = WIDE(x[((image * h + a) * w + b) * c + channel]);
                        if (at < 0 || value > largest || value != value) largest = value, at = a * w + b;
                    }
                }
                if (at == y * w + z) sum += of;
            }
        }
        out[i] = NARROW(sum);
    }
}

// One step of SGD, first its buffer, then the parameters: see sgd.rs. Numbers: learning rate, momentum, decay.
KERNEL NAME(sgd_buffer)(TAKES) {
    const W *g = (const W *)first, *p = (const W *)second;
    W *buffer = (W *)to;
    (void)third;
    EACH(i, work) buffer[i] = (W)s.x[1] * buffer[i] + (g[i] + (W)s.x[2] * p[i]);
}

KERNEL NAME(sgd)(TAKES) {
    const W *g = (const W *)first, *buffer = (const W *)second;
    W *p = (W *)to;
    const int nesterov = s.n[0];
    (void)third;
    EACH(i, work) {
        const W step = nesterov ? g[i] + (W)s.x[2] * p[i] + (W)s.x[1] * buffer[i] : buffer[i];
        p[i] -= (W)s.x[0] * step;
    }
}

#undef COL2IM
#undef PACK
#undef ONE
#undef T
#undef W
#undef NAME
#undef WIDE
#undef NARROW
