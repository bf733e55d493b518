/* What stands between convolutions: max pooling and response normalisation. */
#ifndef SSL_BETWEEN_H
#define SSL_BETWEEN_H

#include <stdint.h>

/* One max pooling of contiguous planes. The caller fills it in this order. */
typedef struct {
    int64_t planes, height, width, out_h, out_w;
    int64_t kernel_h, kernel_w, step_y, step_x, pad_y, pad_x, dilation_y, dilation_x;
    int64_t relu, is_bfloat16, threads, level;
} Pool;

/* One normalisation across channels of contiguous images, of at least sixteen pixels. */
typedef struct {
    int64_t batch, channels, pixels, size, is_bfloat16, threads, level;
    double scale, beta, k; /* divided by (k + scale * sum of squares) ^ beta */
} ResponseNorm;

#endif
