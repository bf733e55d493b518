/* Max pooling and response normalisation on the CPU: shares of the work for the threads. */
#include "between.h"

#include <stdatomic.h>

#include "column_sparse.h"
#include "threads.h"

enum {
    DONE, NO_MEMORY, BAD_POSITIONS,
    BLOCK = 256,         /* pixels whose channels of one window fit in L1 */
    SMALL = 32 * 1024    /* elements that are not worth waking a thread */
};

typedef struct {
    const Pool *pool;
    const ResponseNorm *norm;
    const int64_t *position;
    const Kernels *kernels;
    const void *x;
    void *y;
    atomic_llong next;
    atomic_int failed;
} Job;

static void pool_planes(void *argument) {
    Job *job = argument;
    const Pool *p = job->pool;
    const int64_t length = (p->out_w - 1) * p->step_x + 1 + (p->kernel_w - 1) * p->dilation_x;
    const int64_t floats = POOL_LINES * (length + 2 * MAX_LANES);
    float *line = ssl_scratch(PANEL, (size_t)floats * sizeof(float));
    if (!line) {
        atomic_store(&job->failed, 1);
        return;
    }
    for (int64_t plane; (plane = atomic_fetch_add(&job->next, 1)) < p->planes;)
        job->kernels->max_pool(p, job->x, plane, line, job->y);
}

/* Pool every plane of `x`; returns 0 or NO_MEMORY. */
int ssl_max_pool2d(const Pool *p, const void *x, void *y) {
    Job job = {.pool = p, .x = x, .y = y, .kernels = ssl_kernels(p->level, 0)};
    const int many = p->planes * p->height * p->width > SMALL;
    ssl_parallel(pool_planes, &job, many ? (int)p->threads : 1);
    return atomic_load(&job.failed) ? NO_MEMORY : DONE;
}

static void normalise_blocks(void *argument) {
    Job *job = argument;
    const ResponseNorm *p = job->norm;
    const int64_t blocks = (p->pixels + BLOCK - 1) / BLOCK;
    for (int64_t i; (i = atomic_fetch_add(&job->next, 1)) < p->batch * blocks;) {
        const int64_t first = i % blocks * BLOCK;
        const int64_t end = first + BLOCK < p->pixels ? first + BLOCK : p->pixels;
        job->kernels->response_norm(p, job->position, job->x, i / blocks, first, end, job->y);
    }
}

/* Normalise every image of `x`. `position`: of each channel among those that windows count, NULL if
 * none is missing. Returns 0 or BAD_POSITIONS. */
int ssl_response_norm(const ResponseNorm *p, const int64_t *position, const void *x, void *y) {
    Job job = {.norm = p, .position = position, .x = x, .y = y,
               .kernels = ssl_kernels(p->level, 0)};
    for (int64_t c = 0, least = 0; position && c < p->channels; least = position[c++] + 1)
        if (position[c] < least) return BAD_POSITIONS;
    const int many = p->batch * p->channels * p->pixels > SMALL;
    ssl_parallel(normalise_blocks, &job, many ? (int)p->threads : 1);
    return DONE;
}
