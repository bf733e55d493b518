/* Kernels for AVX512-BF16: products of pairs of bfloat16, summed in float. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "column_sparse.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,fma")))
enum { LANES = 16, TILE_ROWS = 8, TILE_VECTORS = 3 };

static void fill(const void *from, int64_t stride, int64_t width, int64_t lines, void *to,
                 int64_t pitch) {
    ssl_avx512.fill_bfloat16(from, stride, width, lines, to, pitch);
}

/* Read the input itself, shifted; what a mask leaves out is zero and is not touched. */
TARGET static void pack_directly(const uint16_t *input, const Layout *layout, const int64_t *offset,
                                 int64_t depth, int64_t first, int64_t count, int64_t width,
                                 uint32_t *panel) {
    uint16_t masks[MAX_DIRECT_AREA][MAX_PANEL_VECTORS];
    const int64_t *place = layout->place + (offset - layout->offset);
    ssl_masks(layout, first, count, masks);
    for (int64_t k = 0; k < depth; k += 2, panel += width) {
        const int64_t second = k + 1 < depth ? k + 1 : k;
        const uint16_t *low = input + offset[k] + first, *high = input + offset[second] + first;
        const __mmask16 pair = second > k ? 0xffff : 0;
        for (int64_t v = 0; v * LANES < width; v++) {
            const __m256i a = _mm256_maskz_loadu_epi16(masks[place[k]][v], low + v * LANES);
            const __m256i b =
                _mm256_maskz_loadu_epi16(masks[place[second]][v] & pair, high + v * LANES);
            _mm512_storeu_si512(panel + v * LANES,
                                _mm512_or_si512(_mm512_cvtepu16_epi32(a),
                                                _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)));
        }
    }
}

/* Lower two columns at a time: of each pixel, one in the low and one in the high half. */
TARGET static void pack(const void *image, const Layout *layout, const int64_t *offset,
                        int64_t depth, int64_t first, int64_t count, int64_t width, void *panel) {
    if (layout->direct) {
        pack_directly(image, layout, offset, depth, first, count, width, panel);
        return;
    }
    const int64_t top = first / layout->out_w, left = first % layout->out_w;
    for (int64_t k = 0; k < depth; k += 2) {
        const int64_t start = top * layout->line + left;
        const uint16_t *low = (const uint16_t *)image + offset[k] + start;
        const uint16_t *high = (const uint16_t *)image + offset[k + 1 < depth ? k + 1 : k] + start;
        const __mmask16 pair = k + 1 < depth ? 0xffff : 0;
        uint32_t *to = (uint32_t *)panel + k / 2 * width;
        _mm512_storeu_si512(to + width - LANES, _mm512_setzero_si512());
        int64_t part = layout->out_w - left;
        for (int64_t done = 0; done < count; done += part, part = layout->out_w) {
            if (part > count - done) part = count - done;
            for (int64_t i = 0; i < part; i += LANES) {
                const __m256i one = _mm256_loadu_si256((const void *)(low + i));
                const __m256i two = _mm256_loadu_si256((const void *)(high + i));
                const __m512i a = _mm512_cvtepu16_epi32(one);
                const __m512i b = _mm512_maskz_cvtepu16_epi32(pair, two);
                _mm512_storeu_si512(to + done + i, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
            }
            const int64_t step = layout->line - (done ? 0 : left);
            low += step;
            high += step;
        }
    }
}

TARGET INLINE void tile(const Block *b, int64_t row, int64_t pixel, const int rows,
                        const int vectors) {
    __m512 sum[TILE_ROWS][TILE_VECTORS];
    const uint16_t *weight = (const uint16_t *)b->weight + row * b->depth;
    const uint32_t *panel = (const uint32_t *)b->panel + pixel;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + 1 < b->depth; k += 2, panel += b->width) {
        __m512bh pixels[TILE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            pixels[v] = (__m512bh)_mm512_loadu_si512(panel + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, weight + r * b->depth + k, sizeof two);
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sum[r][v] = _mm512_dpbf16_ps(sum[r][v], factor, pixels[v]);
        }
    }
    if (k < b->depth) { /* a last column alone */
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(weight[r * b->depth + k]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sum[r][v] = _mm512_dpbf16_ps(
                    sum[r][v], factor, (__m512bh)_mm512_loadu_si512(panel + v * LANES));
        }
    }
    const __m512 floor = _mm512_set1_ps(b->floor);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const int64_t filter = b->row[row + r];
        const uint16_t *bias = b->bias;
        const __m512 shift = _mm512_set1_ps(bias ? from_bfloat16(bias[filter]) : 0.0f);
        uint16_t *to = (uint16_t *)b->output + filter * b->filter_stride + pixel;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            const int64_t left = b->pixels - pixel - v * LANES;
            /* of NaN and a number, the second comes out: NaN remains */
            const __m512 value = _mm512_max_ps(floor, _mm512_add_ps(sum[r][v], shift));
            const uint32_t mask = left >= LANES ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
            _mm256_mask_storeu_epi16(to + v * LANES, (__mmask16)mask,
                                     (__m256i)_mm512_cvtneps_pbh(value));
        }
    }
}

#define TILE(r, v)                                                                               \
    TARGET static void tile_##r##_##v(const Block *b, int64_t row, int64_t pixel) {              \
        tile(b, row, pixel, r, v);                                                               \
    }
#define TILES(r) TILE(r, 1) TILE(r, 2) TILE(r, 3)
#define ENTRY(r) {tile_##r##_1, tile_##r##_2, tile_##r##_3}
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8)

static void (*const tiles[TILE_ROWS][TILE_VECTORS])(const Block *, int64_t, int64_t) = {
    ENTRY(1), ENTRY(2), ENTRY(3), ENTRY(4), ENTRY(5), ENTRY(6), ENTRY(7), ENTRY(8),
};

static void multiply(const Block *b) {
    for (int64_t row = 0; row < b->rows; row += TILE_ROWS) {
        const int64_t rows = b->rows - row < TILE_ROWS ? b->rows - row : TILE_ROWS;
        for (int64_t pixel = 0; pixel < b->width; pixel += TILE_VECTORS * LANES) {
            const int64_t vectors = (b->width - pixel) / LANES;
            tiles[rows - 1][(vectors < TILE_VECTORS ? vectors : TILE_VECTORS) - 1](b, row, pixel);
        }
    }
}

const Kernels ssl_avx512_bf16 = {
    .name = "avx512_bf16",
    .lanes = LANES,
    .tile_vectors = TILE_VECTORS,
    .native_bfloat16 = 1,
    .direct = 1,
    .fill_bfloat16 = fill,
    .pack_bfloat16 = pack,
    .multiply = multiply,
};
#endif
