/* Packing and the register-tiled multiplication for one instruction set.
 *
 * Before inclusion: NAME(x) makes names of this instruction set, TARGET is a function attribute,
 * LANES floats make a vector, and a tile has TILE_ROWS x TILE_VECTORS vectors of accumulators. */

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef float NAME(loose) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Copy lines into a padded plane by whole vectors. Zeros follow each line up to the next, and up
 * to a vector may be read and written (with zeros) behind the last. */
#define FILL(function, element, integer, lanes)                                                  \
    TARGET static void function(const void *from, int64_t stride, int64_t width, int64_t lines,  \
                                void *to, int64_t pitch) {                                       \
        typedef integer loose __attribute__((vector_size(4 * LANES), aligned(2), may_alias));    \
        const int64_t whole = width / (lanes) * (lanes);                                         \
        loose keep;                                                                              \
        for (int64_t i = 0; i < (lanes); i++) keep[i] = whole + i < width ? -1 : 0;              \
        for (int64_t y = 0; y < lines; y++) {                                                    \
            const element *source = (const element *)from + y * stride;                          \
            element *target = (element *)to + y * pitch;                                         \
            int64_t i = 0;                                                                       \
            for (; i < whole; i += (lanes))                                                      \
                *(loose *)(target + i) = *(const loose *)(source + i);                           \
            *(loose *)(target + i) = *(const loose *)(source + i) & keep;                        \
            for (i += (lanes); i < pitch; i += (lanes)) *(loose *)(target + i) = (loose){0};     \
        }                                                                                        \
    }
FILL(NAME(fill), float, int32_t, LANES)
FILL(NAME(fill_bfloat16), uint16_t, int16_t, 2 * LANES)
#undef FILL

/* Copy `count` floats by whole vectors; up to LANES - 1 more are read and written. */
TARGET INLINE void NAME(copy)(const float *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        *(NAME(loose) *)(to + i) = *(const NAME(loose) *)(from + i);
}

TARGET INLINE void NAME(widen)(const uint16_t *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        for (int64_t j = 0; j < LANES; j++) to[i + j] = from_bfloat16(from[i + j]);
}

#define PACK(function, element, copy)                                                            \
    TARGET static void function(const void *image, const Layout *layout, const int64_t *offset,  \
                                int64_t depth, int64_t first, int64_t count, int64_t width,      \
                                void *panel) {                                                   \
        const int64_t top = first / layout->out_w, left = first % layout->out_w;                 \
        for (int64_t k = 0; k < depth; k++) {                                                    \
            const element *line = (const element *)image + offset[k] + top * layout->line + left; \
            float *to = (float *)panel + k * width;                                              \
            *(NAME(loose) *)(to + width - LANES) = (NAME(loose)){0};                             \
            int64_t part = layout->out_w - left;                                                 \
            for (int64_t done = 0; done < count; done += part, part = layout->out_w) {           \
                if (part > count - done) part = count - done;                                    \
                copy(line, to + done, part);                                                     \
                line += layout->line - (done ? 0 : left);                                        \
            }                                                                                    \
        }                                                                                        \
    }
PACK(NAME(pack), float, NAME(copy))
PACK(NAME(pack_bfloat16), uint16_t, NAME(widen))
#undef PACK

/* Put zero in the place of what is less than `floor`; NaN remains NaN. */
TARGET INLINE NAME(vector) NAME(above)(NAME(vector) value, float floor) {
    typedef int32_t mask __attribute__((vector_size(4 * LANES)));
    return (NAME(vector))((mask)value & ~(value < floor));
}

/* Write `count` results of one row; out of line, because only the last tile of a row needs it. */
TARGET static __attribute__((noinline)) void NAME(store)(const float *from, void *to,
                                                         int64_t count, int bfloat16) {
    if (!bfloat16)
        memcpy(to, from, (size_t)count * sizeof(float));
    else
        for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[i] = to_bfloat16(from[i]);
}

/* Multiply `rows` rows by `vectors` vectors of pixels, all accumulators in registers. */
TARGET INLINE void NAME(tile)(const Block *b, int64_t row, int64_t pixel, const int rows,
                              const int vectors) {
    NAME(vector) sum[TILE_ROWS][TILE_VECTORS];
    const float *weight = (const float *)b->weight + row * b->depth;
    const float *panel = (const float *)b->panel + pixel;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = (NAME(vector)){0};
    for (int64_t k = 0; k < b->depth; k++, panel += b->width) {
        NAME(vector) pixels[TILE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) pixels[v] = *(const NAME(loose) *)(panel + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float factor = weight[r * b->depth + k];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[r][v] += factor * pixels[v];
        }
    }
    const int64_t left = b->pixels - pixel, all = vectors * LANES;
    const size_t size = b->bfloat16 ? 2 : 4;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const int64_t filter = b->row[row + r];
        char *to = (char *)b->output + (filter * b->filter_stride + pixel) * (int64_t)size;
        float bias = 0;
        if (b->bias)
            bias = b->bfloat16 ? from_bfloat16(((const uint16_t *)b->bias)[filter])
                               : ((const float *)b->bias)[filter];
        if (left >= all && !b->bfloat16) {
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                *(NAME(loose) *)((float *)to + v * LANES) = NAME(above)(sum[r][v] + bias, b->floor);
        } else {
            float line[TILE_VECTORS * LANES];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                *(NAME(loose) *)(line + v * LANES) = NAME(above)(sum[r][v] + bias, b->floor);
            NAME(store)(line, to, left < all ? left : all, b->bfloat16);
        }
    }
}

#define TILE(r, v)                                                                               \
    TARGET static void NAME(tile_##r##_##v)(const Block *b, int64_t row, int64_t pixel) {        \
        NAME(tile)(b, row, pixel, r, v);                                                         \
    }
#define TILES(r) TILE(r, 1) TILE(r, 2) TILE(r, 3)
#define ENTRY(r) {NAME(tile_##r##_1), NAME(tile_##r##_2), NAME(tile_##r##_3)}
TILES(1) TILES(2) TILES(3) TILES(4)
#if TILE_ROWS == 8
TILES(5) TILES(6) TILES(7) TILES(8)
#endif

static void (*const NAME(tiles)[TILE_ROWS][TILE_VECTORS])(const Block *, int64_t, int64_t) = {
    ENTRY(1), ENTRY(2), ENTRY(3), ENTRY(4),
#if TILE_ROWS == 8
    ENTRY(5), ENTRY(6), ENTRY(7), ENTRY(8),
#endif
};
#undef TILE
#undef TILES
#undef ENTRY

/* All tiles of a block: the panel fits L2, the weights of a few rows in L1. */
static void NAME(multiply)(const Block *b) {
    for (int64_t row = 0; row < b->rows; row += TILE_ROWS) {
        const int64_t rows = b->rows - row < TILE_ROWS ? b->rows - row : TILE_ROWS;
        for (int64_t pixel = 0; pixel < b->width; pixel += TILE_VECTORS * LANES) {
            const int64_t vectors = (b->width - pixel) / LANES;
            const int64_t wide = vectors < TILE_VECTORS ? vectors : TILE_VECTORS;
            NAME(tiles)[rows - 1][wide - 1](b, row, pixel);
        }
    }
}
