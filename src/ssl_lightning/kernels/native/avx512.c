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
                           int64_t depth, int64_t first, int64_t count, int64_t width,
                           void *panel) {
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
};
#endif
