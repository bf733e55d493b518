/* Max pooling and response normalisation for one instruction set; include multiply.inc.h before.
 *
 * MAXIMUM(a, b) is the larger, or NaN if either is; what is defined here serves if nothing else. */

typedef int32_t NAME(mask) __attribute__((vector_size(4 * LANES)));

#ifndef MAXIMUM
TARGET INLINE NAME(vector) NAME(maximum)(NAME(vector) a, NAME(vector) b) {
    const NAME(mask) first = ~(a <= b) & (b == b);
    return (NAME(vector))(((NAME(mask))a & first) | ((NAME(mask))b & ~first));
}
#define MAXIMUM NAME(maximum)
#endif

TARGET INLINE NAME(vector) NAME(load)(const float *from) { return *(const NAME(loose) *)from; }

TARGET INLINE NAME(vector) NAME(load_bfloat16)(const uint16_t *from) {
    NAME(vector) wide;
    NAME(widen)(from, (float *)&wide, LANES);
    return wide;
}

TARGET INLINE void NAME(put)(NAME(vector) value, float *to) { *(NAME(loose) *)to = value; }

TARGET INLINE void NAME(put_bfloat16)(NAME(vector) value, uint16_t *to) {
    for (int64_t i = 0; i < LANES; i++) to[i] = to_bfloat16(value[i]);
}

#ifndef PICK
#define PICK NAME(pick)
TARGET static void NAME(pick)(const float *from, int64_t step, int64_t count, float *to) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i * step];
}
#endif

TARGET static void NAME(pick_bfloat16)(const float *from, int64_t step, int64_t count,
                                       uint16_t *to) {
    for (int64_t i = 0; i < count; i++) to[i] = to_bfloat16(from[i * step]);
}

/* Replace each position of a line by the maximum of its window. */
TARGET INLINE void NAME(widen_maxima)(float *line, int64_t wide, const int64_t kernel,
                                      int64_t dilation, float floor) {
    for (int64_t j = 0; j < wide; j += LANES) {
        NAME(vector) most = NAME(load)(line + j);
#pragma GCC unroll 4
        for (int64_t k = 1; k < kernel; k++)
            most = MAXIMUM(most, NAME(load)(line + j + k * dilation));
        *(NAME(loose) *)(line + j) = NAME(above)(most, floor);
    }
}

/* Pool one plane: the maxima of the lines of a window, then of the positions in them, then every
 * step-th. Some output lines go through each stage at a time, because a vector that was just
 * written cannot be read at another alignment without a stall. `line` has space for POOL_LINES
 * padded lines, with two vectors behind each. */
#define POOL(pool, lines_maxima, element, read, pick)                                            \
    TARGET INLINE void lines_maxima(const element *from, const element *end, int64_t pitch,      \
                                    const int64_t lines, int64_t width, float *to) {             \
        for (int64_t j = 0; j < width; j += LANES) {                                             \
            NAME(vector) most = (NAME(vector)){0} - __builtin_inff();                            \
            _Pragma("GCC unroll 4")                                                              \
            for (int64_t k = 0; k < lines; k++) {                                                \
                const element *next = from + k * pitch + j;                                      \
                NAME(vector) value = most;                                                       \
                if (!end || end - next >= LANES) value = read(next);                             \
                else                                                                             \
                    for (int64_t e = 0; e < end - next; e++) {                                   \
                        element one[LANES] = {next[e]};                                          \
                        value[e] = read(one)[0];                                                 \
                    }                                                                            \
                if (k) value = MAXIMUM(most, value);                                             \
                most = value;                                                                    \
            }                                                                                    \
            *(NAME(loose) *)(to + j) = most;                                                     \
        }                                                                                        \
    }                                                                                            \
    TARGET static void pool(const Pool *p, const void *x, int64_t plane, float *line, void *y) { \
        const int64_t kernel_w = p->kernel_w, dilation_x = p->dilation_x, pad_x = p->pad_x;      \
        const int64_t width = p->width, step = p->dilation_y * width, out_w = p->out_w;          \
        const element *from = (const element *)x + plane * p->height * width;                    \
        const element *end = (const element *)x + p->planes * p->height * width;                 \
        element *to = (element *)y + plane * p->out_h * out_w;                                   \
        const int64_t wide = (out_w - 1) * p->step_x + 1;                                        \
        const int64_t length = wide + (kernel_w - 1) * dilation_x;                               \
        const int64_t used = width < length - pad_x ? width : length - pad_x;                    \
        const int64_t pitch = (length / LANES + 2) * LANES; /* so that lines are aligned */      \
        const float lowest = -__builtin_inff(), floor = p->relu ? 0 : lowest;                    \
        for (int64_t i = 0; i < p->out_h; i++) {                                                 \
            float *target = line + i % POOL_LINES * pitch, *inside = target + pad_x;             \
            int64_t top = i * p->step_y - p->pad_y, lines = p->kernel_h;                         \
            for (; top < 0; lines--) top += p->dilation_y;                                       \
            while (lines > 0 && top + (lines - 1) * p->dilation_y >= p->height) lines--;         \
            const element *first = from + top * width;                                           \
            const int whole = end - first >= (lines - 1) * step + used + LANES;                  \
            if (whole && lines == 3) lines_maxima(first, NULL, step, 3, used, inside);           \
            else if (whole && lines == 2) lines_maxima(first, NULL, step, 2, used, inside);      \
            else lines_maxima(first, end, step, lines, used, inside);                            \
            for (int64_t j = 0; j < pad_x; j++) target[j] = lowest;                              \
            for (int64_t j = pad_x + used; j < length; j++) target[j] = lowest;                  \
            if ((i + 1) % POOL_LINES && i + 1 < p->out_h) continue;                              \
            const float *last = target;                                                          \
            for (target = line; target <= last; target += pitch) {                               \
                if (kernel_w == 3) NAME(widen_maxima)(target, wide, 3, dilation_x, floor);       \
                else if (kernel_w == 2) NAME(widen_maxima)(target, wide, 2, dilation_x, floor);  \
                else NAME(widen_maxima)(target, wide, kernel_w, dilation_x, floor);              \
            }                                                                                    \
            for (target = line; target <= last; target += pitch, to += out_w)                    \
                pick(target, p->step_x, out_w, to);                                              \
        }                                                                                        \
    }
POOL(NAME(pool_float), NAME(lines_float), float, NAME(load), PICK)
POOL(NAME(pool_bfloat16), NAME(lines_bfloat16), uint16_t, NAME(load_bfloat16), NAME(pick_bfloat16))
#undef POOL

static void NAME(max_pool)(const Pool *p, const void *x, int64_t plane, float *line, void *y) {
    (p->is_bfloat16 ? NAME(pool_bfloat16) : NAME(pool_float))(p, x, plane, line, y);
}

/* Divide `x` by `base` ^ `beta`; two square roots are exact to rounding and much faster. */
TARGET INLINE NAME(vector) NAME(divide)(NAME(vector) x, NAME(vector) base, double beta) {
    NAME(vector) power;
    if (beta == 0.75) {
        NAME(vector) root;
        for (int64_t i = 0; i < LANES; i++) root[i] = sqrtf(base[i]);
        for (int64_t i = 0; i < LANES; i++) power[i] = sqrtf(root[i]);
        power *= root;
    } else {
        for (int64_t i = 0; i < LANES; i++) power[i] = powf(base[i], (float)beta);
    }
    return x / power;
}

/* Normalise pixels [first, end) of one image; the last vector may overlap the one before. */
#define NORMALISE(function, element, read, put)                                                  \
    TARGET static void function(const ResponseNorm *p, const int64_t *position, const void *x,   \
                                int64_t n, int64_t first, int64_t end, void *y) {                \
        const int64_t image = n * p->channels * p->pixels;                                       \
        const float scale = (float)p->scale, k = (float)p->k;                                    \
        int64_t low = 0, high = 0;                                                               \
        for (int64_t c = 0; c < p->channels; c++) {                                              \
            const int64_t begin = (position ? position[c] : c) - p->size / 2;                    \
            while ((position ? position[low] : low) < begin) low++;                              \
            while (high < p->channels && (position ? position[high] : high) < begin + p->size)   \
                high++;                                                                          \
            for (int64_t i = first; i < end; i += LANES) {                                       \
                const int64_t at = image + (i + LANES <= p->pixels ? i : p->pixels - LANES);     \
                const element *from = (const element *)x + at;                                   \
                NAME(vector) squares = {0};                                                      \
                for (int64_t j = low; j < high; j++) {                                           \
                    const NAME(vector) value = read(from + j * p->pixels);                       \
                    squares += value * value;                                                    \
                }                                                                                \
                put(NAME(divide)(read(from + c * p->pixels), k + scale * squares, p->beta),      \
                    (element *)y + at + c * p->pixels);                                          \
            }                                                                                    \
        }                                                                                        \
    }
NORMALISE(NAME(normalise_float), float, NAME(load), NAME(put))
NORMALISE(NAME(normalise_bfloat16), uint16_t, NAME(load_bfloat16), NAME(put_bfloat16))
#undef NORMALISE

static void NAME(response_norm)(const ResponseNorm *p, const int64_t *position, const void *x,
                                int64_t n, int64_t first, int64_t end, void *y) {
    (p->is_bfloat16 ? NAME(normalise_bfloat16) : NAME(normalise_float))(p, position, x, n, first,
                                                                        end, y);
}
