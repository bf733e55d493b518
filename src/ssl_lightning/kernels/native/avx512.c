/* Kernels for AVX-512: thirty-two registers of sixteen lanes. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "column_sparse.h"

#define NAME(x) avx512_##x
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,fma,prefer-vector-width=512")))
#define TARGET AVX512
#define LANES 16
#define TILE_ROWS 8
#define TILE_VECTORS 3
#include "multiply.inc.h"

/* Pack by whole vectors of the panel: as sixteen pixels span at most two vectors of the image, one
 * permutation puts them together, and every store is aligned. */
AVX512 static void permute(const void *image, const Layout *layout, const int64_t *offset,
                           int64_t depth, int64_t first, int64_t count, int64_t width, void *panel) {
    int64_t start[MAX_PANEL_VECTORS];
    __m512i index[MAX_PANEL_VECTORS];
    const int64_t vectors = width / LANES, gap = layout->line - layout->out_w;
    int64_t line = first / layout->out_w, column = first % layout->out_w;
    for (int64_t v = 0; v < vectors; v++) {
        int32_t lane[LANES] = {0};
        start[v] = line * layout->line + column;
        int64_t place = 0;
        for (int64_t i = 0; i < LANES && v * LANES + i < count; i++) {
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
            const __m512 low = _mm512_loadu_ps(from + start[v]);
            const __m512 high = _mm512_loadu_ps(from + start[v] + LANES);
            _mm512_store_ps(to + v * LANES, _mm512_permutex2var_ps(low, index[v], high));
        }
    }
}

static void pack(const void *image, const Layout *layout, const int64_t *offset, int64_t depth,
                 int64_t first, int64_t count, int64_t width, void *panel) {
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
    .fill = avx512_fill,
    .fill_bfloat16 = avx512_fill_bfloat16,
    .pack = pack,
    .pack_bfloat16 = avx512_pack_bfloat16,
    .multiply = avx512_multiply,
};
#endif
