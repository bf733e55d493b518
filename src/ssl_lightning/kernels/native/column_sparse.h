/* Column-sparse 2-D convolution: what the parts of the kernel share. */
#ifndef SSL_COLUMN_SPARSE_H
#define SSL_COLUMN_SPARSE_H

#include <stdint.h>

#include "between.h"

#define INLINE static inline __attribute__((always_inline))
enum {
    IMAGE = 0, PANEL = 1,   /* slots of scratch memory */
    MAX_LANES = 16,
    POOL_LINES = 8,         /* of output that max pooling holds at a time */
    MAX_PANEL_VECTORS = 12, /* of pixels */
    MAX_DIRECT_AREA = 128   /* positions of a kernel that may read the input directly */
};

/* One convolution. The caller fills it in this order (a plain array of 64-bit integers). */
typedef struct {
    int64_t batch, in_channels, height, width;
    int64_t stride_n, stride_c, stride_h, stride_w; /* of the input, in elements */
    int64_t out_channels, groups;
    int64_t kernel_h, kernel_w, step_y, step_x, pad_y, pad_x, dilation_y, dilation_x;
    int64_t num_rows, num_columns, num_values; /* retained, over all conv-groups */
    int64_t relu, is_bfloat16, threads, level;
} Problem;

/* The retained part of one conv-group. */
typedef struct {
    int64_t row, rows, column, columns; /* first and number of */
    int64_t value;                      /* first element of the (rows, columns) block */
} Group;

/* Where the retained columns of the padded input lie.
 *
 * An image is copied once into planes, one per used channel and residue of the position modulo the
 * stride, padding included. There each column of the lowered matrix is a window of whole lines:
 * output line y of column k starts at offset[k] + y * line, whatever the stride.
 *
 * If steps are 1 and the output is as wide as the input, pixel i of column k is element
 * offset[k] + i of the input itself, or padding. Kernels with masks then read it directly. */
typedef struct {
    const Problem *p;
    int direct;
    int64_t out_h, out_w, pixels; /* lines are merged where the planes have no gaps */
    int64_t phases, plane_h, line, image;
    int64_t used_channels;
    int64_t *channel;     /* used channel -> channel of the input */
    int64_t *phase;       /* used phase -> residue_y * step_x + residue_x */
    int64_t *place;       /* retained column -> position in the kernel */
    int64_t *offset;      /* retained column -> first element of its window in the image */
    Group *group;
} Layout;

/* A block of output: retained rows of one conv-group x pixels. */
typedef struct {
    const void *weight; /* (rows, depth), row-major */
    int64_t rows, depth;
    const void *panel; /* (depth, width) or pairs of depth for bfloat16 */
    int64_t width;     /* of the panel: a multiple of the vector length */
    int64_t pixels;    /* of them valid */
    const int64_t *row; /* retained row -> filter */
    const void *bias;   /* of all filters, or NULL */
    void *output;       /* first pixel of filter 0 */
    int64_t filter_stride;
    int bfloat16; /* elements of bias and output */
    float floor;  /* what is less becomes zero: zero for ReLU, or minus infinity */
} Block;

/* What differs from one instruction set to another. */
typedef struct {
    const char *name;
    int64_t lanes, tile_vectors;
    int native_bfloat16; /* multiplies pairs of bfloat16 */
    int direct;          /* can read the input without a padded copy */
    /* Copy lines of the input into a padded plane; see multiply.inc.h. */
    void (*fill)(const void *from, int64_t stride, int64_t width, int64_t lines, void *to,
                 int64_t pitch);
    void (*fill_bfloat16)(const void *from, int64_t stride, int64_t width, int64_t lines,
                          void *to, int64_t pitch);
    /* Copy pixels [first, first + count) of the columns into a panel of `width` pixels. */
    void (*pack)(const void *image, const Layout *layout, const int64_t *offset, int64_t depth,
                 int64_t first, int64_t count, int64_t width, void *panel);
    void (*pack_bfloat16)(const void *image, const Layout *layout, const int64_t *offset,
                          int64_t depth, int64_t first, int64_t count, int64_t width, void *panel);
    void (*multiply)(const Block *block);
    /* Copy every step-th float. */
    void (*pick)(const float *from, int64_t step, int64_t count, float *to);
    void (*max_pool)(const Pool *pool, const void *x, int64_t plane, float *line, void *y);
    void (*response_norm)(const ResponseNorm *norm, const int64_t *position, const void *x,
                          int64_t n, int64_t first, int64_t end, void *y);
} Kernels;

extern const Kernels ssl_base;
#if defined(__x86_64__)
extern const Kernels ssl_avx2, ssl_avx512, ssl_avx512_bf16;
#endif

/* The best kernels of this processor, of at most this level. */
const Kernels *ssl_kernels(int64_t level, int bfloat16);

/* For each position of the kernel, which pixels of each vector of a panel lie inside the input. */
void ssl_masks(const Layout *layout, int64_t first, int64_t count,
               uint16_t masks[MAX_DIRECT_AREA][MAX_PANEL_VECTORS]);

INLINE float from_bfloat16(uint16_t value) {
    union { uint32_t bits; float number; } both = {(uint32_t)value << 16};
    return both.number;
}

/* Round to nearest, ties to even; NaN remains NaN. */
INLINE uint16_t to_bfloat16(float value) {
    union { float number; uint32_t bits; } both = {value};
    if (value != value) return 0x7fc0;
    return (uint16_t)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}

#endif
