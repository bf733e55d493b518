/* Kernels for AVX-512: thirty-two registers of sixteen lanes. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "column_sparse.h"

#define NAME(x) avx512_##x
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,fma,prefer-vector-width=512")))
#define TARGET AVX512
#define LANES 16
#define TILE_ROWS 8
#define TILE_VECTORS 3
#include "multiply.inc.h"

/* The larger of both, or NaN if either is: `max` returns its second operand then, `a`. */
AVX512 INLINE __m512 maximum(__m512 a, __m512 b) {
    return _mm512_mask_max_ps(b, _mm512_cmp_ps_mask(b, b, _CMP_ORD_Q), b, a);
}

AVX512 INLINE __mmask16 first_lanes(int64_t count) {
    return (__mmask16)(count >= LANES ? 0xffff : count > 0 ? (1u << count) - 1 : 0);
}

/* Every step-th of the floats, of which there are `left` positions; no more is read than needed. */
AVX512 INLINE __m512 pick_vector(const float *from, const int64_t step, int64_t left) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i index = _mm512_slli_epi32(lane, (unsigned)step / 2); /* high bits do not count */
    __m512 part[4];
#pragma GCC unroll 4
    for (int64_t v = 0; v < step; v++)
        part[v] = _mm512_maskz_loadu_ps(first_lanes(left - v * LANES), from + v * LANES);
    const __m512 low = _mm512_permutex2var_ps(part[0], index, part[1]);
    if (step == 2) return low;
    return _mm512_mask_blend_ps(0xff00, low, _mm512_permutex2var_ps(part[2], index, part[3]));
}

/* The last vector may overlap the one before: cheaper than masks that depend on the count. */
AVX512 INLINE void pick_vectors(const float *from, const int64_t step, int64_t count, float *to) {
    if (count < LANES) {
        if (count > 0)
            _mm512_mask_storeu_ps(to, first_lanes(count),
                                  pick_vector(from, step, (count - 1) * step + 1));
        return;
    }
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t at = i + LANES <= count ? i : count - LANES;
        _mm512_storeu_ps(to + at, pick_vector(from + at * step, step, (LANES - 1) * step + 1));
    }
}

AVX512 static void pick(const float *from, int64_t step, int64_t count, float *to) {
    if (step == 2) pick_vectors(from, 2, count, to);
    else if (step == 4) pick_vectors(from, 4, count, to);
    else
        for (int64_t i = 0; i < count; i++) to[i] = from[i * step];
}

#define MAXIMUM maximum
#define PICK pick
#include "between.inc.h"

/* Pack by whole vectors of the panel: as sixteen pixels span at most two vectors of the image, one
 * permutation puts them together, and every store is aligned. */
AVX512 static void permute(const void *image, const Layout *layout, const int64_t *offset,
                           int64_t depth, int64_t first, int64_t count, int64_t width,
                           void *panel) {
    int64_t start[MAX_PANEL_VECTORS];
    __m512i index[MAX_PANEL_VECTORS];
    int split[MAX_PANEL_VECTORS]; /* whether a line ends inside the vector */
    const int64_t vectors = width / LANES, gap = layout->line - layout->out_w;
    int64_t line = first / layout->out_w, column = first % layout->out_w;
    for (int64_t v = 0; v < vectors; v++) {
        int32_t lane[LANES] = {0};
        start[v] = line * layout->line + column;
        int64_t place = 0;
        split[v] = 0;
        for (int64_t i = 0; i < LANES && v * LANES + i < count; i++) {
            split[v] |= place > i;
            lane[i] = (int32_t)place++;
            if (++column == layout->out_w) {
                column = 0;
                line++;
                place += gap;
            }
        }
        index[v] = _mm512_loadu_si512(lane);
    }
    for (int64_t k = 0; k < depth; k++) {
        const float *from = (const float *)image + offset[k];
        float *to = (float *)panel + k * width;
        for (int64_t v = 0; v < vectors; v++) {
            __m512 pixels = _mm512_loadu_ps(from + start[v]);
            if (split[v])
                pixels = _mm512_permutex2var_ps(pixels, index[v],
                                                _mm512_loadu_ps(from + start[v] + LANES));
            _mm512_store_ps(to + v * LANES, pixels);
        }
    }
}

void ssl_masks(const Layout *layout, int64_t first, int64_t count,
               uint16_t masks[MAX_DIRECT_AREA][MAX_PANEL_VECTORS]) {
    const Problem *p = layout->p;
    const int64_t vectors = (count + LANES - 1) / LANES;
    for (int64_t x = 0; x < p->kernel_w; x++) {
        const int64_t shift = x * p->dilation_x - p->pad_x;
        uint16_t inside[MAX_PANEL_VECTORS] = {0};
        int64_t column = first % p->width + shift;
        for (int64_t i = 0; i < count; i++) {
            inside[i / LANES] |= (uint16_t)((column >= 0 && column < p->width) << i % LANES);
            if (++column == p->width + shift) column = shift;
        }
        for (int64_t y = 0; y < p->kernel_h; y++) {
            const int64_t lines = y * p->dilation_y - p->pad_y;
            const int64_t begin = -lines * p->width - first; /* pixels whose line is inside */
            const int64_t end = (p->height - lines) * p->width - first;
            for (int64_t v = 0; v < vectors; v++) {
                const int64_t low = begin - v * LANES, high = end - v * LANES;
                const uint32_t from = low <= 0 ? 0xffff : low >= LANES ? 0 : 0xffffu << low;
                const uint32_t to = high >= LANES ? 0xffff : high <= 0 ? 0 : (1u << high) - 1;
                masks[y * p->kernel_w + x][v] = (uint16_t)(inside[v] & from & to);
            }
        }
    }
}

/* Read the input itself, shifted; what a mask leaves out is zero and is not touched. */
AVX512 static void pack_directly(const float *input, const Layout *layout, const int64_t *offset,
                                 int64_t depth, int64_t first, int64_t count, int64_t width,
                                 float *panel) {
    uint16_t masks[MAX_DIRECT_AREA][MAX_PANEL_VECTORS];
    const int64_t *place = layout->place + (offset - layout->offset);
    ssl_masks(layout, first, count, masks);
    for (int64_t k = 0; k < depth; k++, panel += width) {
        const float *from = input + offset[k] + first;
        const uint16_t *mask = masks[place[k]];
        for (int64_t v = 0; v * LANES < width; v++)
            _mm512_store_ps(panel + v * LANES, _mm512_maskz_loadu_ps(mask[v], from + v * LANES));
    }
}

static void pack(const void *image, const Layout *layout, const int64_t *offset, int64_t depth,
                 int64_t first, int64_t count, int64_t width, void *panel) {
    if (layout->direct) {
        pack_directly(image, layout, offset, depth, first, count, width, panel);
        return;
    }
    /* sixteen pixels cross at most this many ends of lines, each with a gap behind it */
    const int64_t ends = (LANES - 2) / layout->out_w + 1;
    if (LANES + ends * (layout->line - layout->out_w) <= 2 * LANES)
        permute(image, layout, offset, depth, first, count, width, panel);
    else
        avx512_pack(image, layout, offset, depth, first, count, width, panel);
}

const Kernels ssl_avx512 = {
    .name = "avx512",
    .lanes = LANES,
    .tile_vectors = TILE_VECTORS,
    .direct = 1,
    .fill = avx512_fill,
    .fill_bfloat16 = avx512_fill_bfloat16,
    .pack = pack,
    .pack_bfloat16 = avx512_pack_bfloat16,
    .multiply = avx512_multiply,
    .pick = pick,
    .max_pool = avx512_max_pool,
    .response_norm = avx512_response_norm,
};
#endif
