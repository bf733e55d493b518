/* Column-sparse 2-D convolution on the CPU: lowering fused with the multiplication.
 *
 * A tile of output pixels is lowered, retained columns only, into a panel that fits L2 and is
 * multiplied at once by the retained rows; the whole lowered matrix never exists. The interface is
 * plain C, so the library works with any version of torch. */
#include "column_sparse.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

enum {
    PANEL_BYTES = 128 * 1024, /* measured on Zen 5: 64 and 256 are a few percent slower */
    SLACK = 64 /* elements that whole-vector copies may touch behind an image or a panel */
};

enum { DONE, NO_MEMORY, BAD_INDEX, BAD_COUNT };

typedef struct {
    const Problem *p;
    const Kernels *kernels;
    const Layout *layout;
    const char *x, *bias;
    const void *weight; /* retained values; float for bfloat16 too if kernels multiply floats */
    const int64_t *rows;
    char *y, *images;   /* `images`: shared by all threads, NULL if each pads its own */
    const uint8_t *is_kept;
    size_t element;
    int64_t panel_vectors, panels;
    atomic_llong next_plane, planes_done, next_task;
    atomic_int failed;
} Job;

const Kernels *ssl_kernels(int64_t level, int bfloat16) {
    const Kernels *found = &ssl_base;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found = &ssl_avx2;
    if (level >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        found = &ssl_avx512;
        if (level >= 3 && bfloat16 && __builtin_cpu_supports("avx512bf16"))
            found = &ssl_avx512_bf16;
    }
#else
    (void)level, (void)bfloat16;
#endif
    return found;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int ascends(const int64_t *index, int64_t count, int64_t bound) {
    int64_t before = -1;
    for (int64_t i = 0; i < count; before = index[i++])
        if (index[i] <= before || index[i] >= bound) return 0;
    return 1;
}

/* Split the retained rows and columns (ascending) among the conv-groups. */
static void find_groups(const Problem *p, const int64_t *rows, const int64_t *columns,
                        Group *group) {
    const int64_t filters = p->out_channels / p->groups;
    const int64_t width = p->in_channels / p->groups * p->kernel_h * p->kernel_w;
    int64_t row = 0, column = 0, value = 0;
    for (int64_t g = 0; g < p->groups; g++) {
        group[g] = (Group){row, 0, column, 0, value};
        while (row < p->num_rows && rows[row] < (g + 1) * filters) row++;
        while (column < p->num_columns && columns[column] < (g + 1) * width) column++;
        group[g].rows = row - group[g].row;
        group[g].columns = column - group[g].column;
        value += group[g].rows * group[g].columns;
    }
}

/* Whether the columns are the input itself, shifted. */
static int is_direct(const Problem *p, const Kernels *kernels, const Layout *l) {
    return kernels->direct && (!p->is_bfloat16 || kernels->native_bfloat16) &&
           p->step_y == 1 && p->step_x == 1 && l->out_w == p->width && p->stride_w == 1 &&
           p->stride_h == p->width && p->kernel_h * p->kernel_w <= MAX_DIRECT_AREA;
}

static void read_directly(const Problem *p, const int64_t *columns, Layout *l) {
    const int64_t area = p->kernel_h * p->kernel_w;
    int64_t shift[MAX_DIRECT_AREA], channel = 0;
    for (int64_t i = 0; i < area; i++)
        shift[i] = (i / p->kernel_w * p->dilation_y - p->pad_y) * p->width +
                   i % p->kernel_w * p->dilation_x - p->pad_x;
    for (int64_t k = 0; k < p->num_columns; k++) {
        while (columns[k] >= (channel + 1) * area) channel++;
        l->place[k] = columns[k] - channel * area;
        l->offset[k] = channel * p->stride_c + shift[l->place[k]];
    }
    l->used_channels = l->phases = l->image = 0;
}

/* Find which channels and phases are used, and where each retained column lies. */
static int make_layout(const Problem *p, const Kernels *kernels, const int64_t *rows,
                       const int64_t *columns, Layout *l) {
    const int64_t area = p->kernel_h * p->kernel_w, steps = p->step_y * p->step_x;
    const size_t size = (size_t)(2 * p->in_channels + 2 * steps + area + 2 * p->num_columns);
    int64_t *slot = malloc(size * sizeof(int64_t));
    l->group = malloc((size_t)p->groups * sizeof(Group));
    l->channel = slot;
    if (!slot || !l->group) return 0;
    int64_t *channel_slot = slot + p->in_channels;
    l->phase = channel_slot + p->in_channels;
    int64_t *phase_slot = l->phase + steps;
    int64_t *place = phase_slot + steps;
    l->offset = place + area;
    l->place = l->offset + p->num_columns;
    l->p = p;
    find_groups(p, rows, columns, l->group);

    const int64_t padded_h = p->height + 2 * p->pad_y, padded_w = p->width + 2 * p->pad_x;
    l->out_h = (padded_h - p->dilation_y * (p->kernel_h - 1) - 1) / p->step_y + 1;
    l->out_w = (padded_w - p->dilation_x * (p->kernel_w - 1) - 1) / p->step_x + 1;
    l->pixels = l->out_h * l->out_w;
    l->plane_h = ceil_div(padded_h, p->step_y);
    l->line = ceil_div(padded_w, p->step_x);
    l->used_channels = l->phases = 0;
    l->direct = is_direct(p, kernels, l);
    if (l->direct) {
        read_directly(p, columns, l);
        return 1;
    }
    memset(slot, -1, (size_t)(2 * p->in_channels + 2 * steps + area) * sizeof(int64_t));
    int64_t channel = 0; /* columns ascend, so no division is needed to find it */
    for (int64_t k = 0; k < p->num_columns; k++) {
        while (columns[k] >= (channel + 1) * area) channel++;
        if (channel_slot[channel] < 0) {
            channel_slot[channel] = l->used_channels;
            l->channel[l->used_channels++] = channel;
        }
        l->place[k] = columns[k] - channel * area;
        place[l->place[k]] = 0;
    }
    for (int64_t i = 0; i < area; i++) {
        if (place[i] < 0) continue;
        const int64_t y = i / p->kernel_w * p->dilation_y, x = i % p->kernel_w * p->dilation_x;
        const int64_t phase = y % p->step_y * p->step_x + x % p->step_x;
        if (phase_slot[phase] < 0) {
            phase_slot[phase] = l->phases;
            l->phase[l->phases++] = phase;
        }
        place[i] = (phase_slot[phase] * l->plane_h + y / p->step_y) * l->line + x / p->step_x;
    }
    const int64_t planes = l->phases * l->plane_h * l->line;
    l->image = l->used_channels * planes;
    channel = 0;
    for (int64_t k = 0; k < p->num_columns; k++) {
        while (columns[k] >= (channel + 1) * area) channel++;
        l->offset[k] = channel_slot[channel] * planes + place[l->place[k]];
    }
    if (l->line == l->out_w) { /* lines follow each other without gaps: one long line */
        l->out_w = l->line = l->pixels;
        l->out_h = 1;
    }
    return 1;
}

static void free_layout(Layout *l) {
    free(l->channel);
    free(l->group);
}

static void pick_bfloat16(const uint16_t *from, int64_t step, int64_t count, uint16_t *to) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i * step];
}

/* Copy one line of the input, every step-th element, zeros where it lies outside. */
#define COPY_LINE(name, element, pick)                                                           \
    static void name(const Kernels *kernels, const element *from, int64_t stride, int64_t length, \
                     int64_t first, int64_t step, element *to, int64_t count) {                  \
        (void)kernels;                                                                           \
        int64_t begin = first < 0 ? ceil_div(-first, step) : 0;                                  \
        int64_t end = length > first ? ceil_div(length - first, step) : 0;                       \
        if (begin > count) begin = count;                                                        \
        if (end > count) end = count;                                                            \
        if (end < begin) end = begin;                                                            \
        for (int64_t i = 0; i < begin; i++) to[i] = 0;                                           \
        const element *source = from + first * stride;                                           \
        if (step * stride == 1)                                                                  \
            memcpy(to + begin, source + begin, (size_t)(end - begin) * sizeof(element));         \
        else                                                                                     \
            pick(source + begin * step * stride, step * stride, end - begin, to + begin);        \
        for (int64_t i = end; i < count; i++) to[i] = 0;                                         \
    }
COPY_LINE(copy_line_float, float, kernels->pick)
COPY_LINE(copy_line_bfloat16, uint16_t, pick_bfloat16)

/* Copy one channel into its only plane by whole vectors; return how many lines of it are done.
 *
 * The last lines are not copied where a vector would reach behind the input or behind the plane,
 * whose neighbour another thread may be filling. */
static int64_t fill_plane(const Job *job, int64_t channel, char *to) {
    const Problem *p = job->p;
    const int64_t element = (int64_t)job->element, lanes = job->kernels->lanes * 4 / element;
    const int64_t line = p->width + 2 * p->pad_x, bottom = p->pad_y * line;
    const int64_t read = (p->width / lanes + 1) * lanes; /* from the start of a line */
    const int64_t written = line > read ? ceil_div(line, lanes) * lanes : read;
    const int64_t end = (p->batch - 1) * p->stride_n + (p->in_channels - 1) * p->stride_c +
                        (p->height - 1) * p->stride_h + p->width;
    const int fits = channel + (p->height - 1) * p->stride_h + read <= end &&
                     p->pad_x + written <= line + bottom;
    const int64_t left = fits ? 0 : ceil_div(lanes, p->width);
    if (left >= p->height) return 0;
    char *inside = to + (bottom + p->pad_x) * element;
    memset(to, 0, (size_t)(inside - to));
    (p->is_bfloat16 ? job->kernels->fill_bfloat16 : job->kernels->fill)(
        job->x + channel * element, p->stride_h, p->width, p->height - left, inside, line);
    if (left) return p->pad_y + p->height - left;
    memset(to + (bottom + p->height * line) * element, 0, (size_t)(bottom * element));
    return p->pad_y + p->height + p->pad_y;
}

/* Copy one channel of one image into its planes. */
static void fill_planes(const Job *job, int64_t n, int64_t slot, char *image) {
    const Problem *p = job->p;
    const Layout *l = job->layout;
    const int64_t line = ceil_div(p->width + 2 * p->pad_x, p->step_x);
    const int64_t channel = n * p->stride_n + l->channel[slot] * p->stride_c;
    for (int64_t i = 0; i < l->phases; i++) {
        const int64_t top = l->phase[i] / p->step_x - p->pad_y;
        const int64_t left = l->phase[i] % p->step_x - p->pad_x;
        char *to = image + (slot * l->phases + i) * l->plane_h * line * (int64_t)job->element;
        int64_t y = 0;
        if (p->step_y * p->step_x * p->stride_w == 1 && p->stride_h >= p->width) {
            y = fill_plane(job, channel, to);
            to += y * line * (int64_t)job->element;
        }
        for (; y < l->plane_h; y++, to += line * (int64_t)job->element) {
            const int64_t from = top + y * p->step_y;
            if (from < 0 || from >= p->height) {
                memset(to, 0, (size_t)line * job->element);
                continue;
            }
            const char *source = job->x + (channel + from * p->stride_h) * (int64_t)job->element;
            if (p->is_bfloat16)
                copy_line_bfloat16(job->kernels, (const uint16_t *)source, p->stride_w, p->width,
                                   left, p->step_x, (uint16_t *)to, line);
            else
                copy_line_float(job->kernels, (const float *)source, p->stride_w, p->width, left,
                                p->step_x, (float *)to, line);
        }
    }
}

/* Give removed filters their output: the bias, or zero where ReLU makes it so. */
static void fill_dropped(const Job *job, int64_t n, int64_t filter) {
    const Problem *p = job->p;
    const int64_t pixels = job->layout->pixels;
    char *to = job->y + (n * p->out_channels + filter) * pixels * (int64_t)job->element;
    float bias = 0;
    if (job->bias)
        bias = p->is_bfloat16 ? from_bfloat16(((const uint16_t *)job->bias)[filter])
                              : ((const float *)job->bias)[filter];
    if (p->relu && bias < 0) bias = 0;
    for (int64_t i = 0; i < pixels; i++)
        if (p->is_bfloat16) ((uint16_t *)to)[i] = to_bfloat16(bias);
        else ((float *)to)[i] = bias;
}

/* Compute one panel of one conv-group of one image. */
static void compute_panel(Job *job, int64_t n, int64_t g, int64_t panel, const char *image) {
    const Problem *p = job->p;
    const Layout *l = job->layout;
    if (l->direct) image = job->x + n * p->stride_n * (int64_t)job->element;
    const Kernels *kernels = job->kernels;
    const Group *group = &l->group[g];
    const int64_t first = panel * job->panel_vectors * kernels->lanes;
    int64_t count = l->pixels - first;
    if (count > job->panel_vectors * kernels->lanes) count = job->panel_vectors * kernels->lanes;
    const int64_t width = ceil_div(count, kernels->lanes) * kernels->lanes;
    if (!group->rows) return;
    const int64_t size = (group->columns + 1) * width + SLACK;
    void *lowered = ssl_scratch(PANEL, (size_t)size * sizeof(float));
    if (!lowered) {
        atomic_store(&job->failed, 1);
        return;
    }
    (p->is_bfloat16 ? kernels->pack_bfloat16 : kernels->pack)(
        image, l, l->offset + group->column, group->columns, first, count, width, lowered);
    const size_t value = p->is_bfloat16 && kernels->native_bfloat16 ? 2 : 4;
    const Block block = {
        .weight = (const char *)job->weight + group->value * (int64_t)value,
        .rows = group->rows,
        .depth = group->columns,
        .panel = lowered,
        .width = width,
        .pixels = count,
        .row = job->rows + group->row,
        .bias = job->bias,
        .output = job->y + (n * p->out_channels * l->pixels + first) * (int64_t)job->element,
        .filter_stride = l->pixels,
        .bfloat16 = (int)p->is_bfloat16,
        .floor = p->relu ? 0 : -__builtin_inff(),
    };
    kernels->multiply(&block);
}

static void dropped_filters(const Job *job, int64_t n) {
    for (int64_t filter = 0; filter < job->p->out_channels; filter++)
        if (!job->is_kept[filter]) fill_dropped(job, n, filter);
}

/* Whole images per thread: each pads its own, so that the image is in that core's cache. */
static void work_on_images(void *argument) {
    Job *job = argument;
    const Layout *l = job->layout;
    char *image = ssl_scratch(IMAGE, (size_t)(l->image + SLACK) * job->element);
    if (!image) {
        atomic_store(&job->failed, 1);
        return;
    }
    for (int64_t n; (n = atomic_fetch_add(&job->next_task, 1)) < job->p->batch;) {
        for (int64_t slot = 0; slot < l->used_channels; slot++) fill_planes(job, n, slot, image);
        for (int64_t g = 0; g < job->p->groups; g++)
            for (int64_t panel = 0; panel < job->panels; panel++)
                compute_panel(job, n, g, panel, image);
        dropped_filters(job, n);
    }
}

/* Few images: threads share the padded images and take single panels. */
static void work_on_panels(void *argument) {
    Job *job = argument;
    const Layout *l = job->layout;
    const int64_t planes = job->p->batch * l->used_channels;
    const int64_t image_bytes = l->image * (int64_t)job->element;
    for (int64_t i; (i = atomic_fetch_add(&job->next_plane, 8)) < planes;) {
        const int64_t end = i + 8 < planes ? i + 8 : planes;
        for (int64_t j = i; j < end; j++)
            fill_planes(job, j / l->used_channels, j % l->used_channels,
                        job->images + j / l->used_channels * image_bytes);
        atomic_fetch_add(&job->planes_done, end - i);
    }
    for (unsigned turns = 0; atomic_load(&job->planes_done) < planes;) ssl_pause(&turns);
    const int64_t per_image = job->p->groups * job->panels + 1; /* the last: dropped filters */
    for (int64_t i; (i = atomic_fetch_add(&job->next_task, 1)) < job->p->batch * per_image;) {
        const int64_t n = i / per_image, task = i % per_image;
        if (task == per_image - 1)
            dropped_filters(job, n);
        else
            compute_panel(job, n, task / job->panels, task % job->panels,
                          job->images + n * image_bytes);
    }
}

/* Choose how many vectors of pixels a panel has: it fits L2 and there is work for all threads. */
static void choose_panels(Job *job, int shared) {
    const Layout *l = job->layout;
    const int64_t lanes = job->kernels->lanes, tile = job->kernels->tile_vectors;
    const int64_t vectors = ceil_div(l->pixels, lanes);
    int64_t depth = 1, panels = 1;
    for (int64_t g = 0; g < job->p->groups; g++)
        if (l->group[g].columns > depth) depth = l->group[g].columns;
    int64_t most = PANEL_BYTES / (depth * lanes * (int64_t)sizeof(float)) / tile * tile;
    if (most > MAX_PANEL_VECTORS) most = MAX_PANEL_VECTORS;
    if (most < tile) most = tile;
    if (shared) panels = ceil_div(job->p->threads, job->p->groups * job->p->batch);
    const int64_t share = ceil_div(ceil_div(vectors, panels), tile) * tile;
    job->panel_vectors = share < most ? share : most;
    job->panels = ceil_div(vectors, job->panel_vectors);
}

static int is_shared(const Problem *p) { return p->threads > 1 && p->batch < 4 * p->threads; }

/* Multiply retained rows by columns. `values` are the (rows, columns) blocks of the conv-groups,
 * one behind the other; `rows` and `columns` are ascending and number all filters and, group by
 * group, all columns. `y` is (batch, out_channels, out_h, out_w). Returns 0 or an error below. */
int ssl_column_sparse_conv2d(const Problem *p, const void *x, const void *values, const void *bias,
                             const int64_t *rows, const int64_t *columns, void *y) {
    Layout layout = {0};
    const Kernels *kernels = ssl_kernels(p->level, (int)p->is_bfloat16);
    Job job = {.p = p, .kernels = kernels, .layout = &layout, .x = x, .bias = bias,
               .weight = values, .rows = rows, .y = y};
    const int64_t width = p->in_channels * p->kernel_h * p->kernel_w;
    if (!ascends(rows, p->num_rows, p->out_channels) || !ascends(columns, p->num_columns, width))
        return BAD_INDEX;
    int error = make_layout(p, kernels, rows, columns, &layout) ? DONE : NO_MEMORY;
    uint8_t *is_kept = calloc((size_t)p->out_channels + 1, 1);
    float *floats = NULL;
    job.element = p->is_bfloat16 ? 2 : 4;
    job.is_kept = is_kept;
    if (!is_kept || error) goto out_of_memory;
    const Group *last = &layout.group[p->groups - 1];
    if (last->value + last->rows * last->columns != p->num_values) {
        error = BAD_COUNT;
        goto done;
    }
    for (int64_t i = 0; i < p->num_rows; i++) is_kept[rows[i]] = 1;
    if (p->is_bfloat16 && !job.kernels->native_bfloat16) {
        floats = malloc((size_t)(p->num_values + 1) * sizeof(float));
        if (!floats) goto out_of_memory;
        for (int64_t i = 0; i < p->num_values; i++)
            floats[i] = from_bfloat16(((const uint16_t *)values)[i]);
        job.weight = floats;
    }
    const int shared = is_shared(p);
    choose_panels(&job, shared);
    if (shared) {
        job.images = ssl_scratch(IMAGE, (size_t)(p->batch * layout.image + SLACK) * job.element);
        if (!job.images) goto out_of_memory;
    }
    ssl_parallel(shared ? work_on_panels : work_on_images, &job, (int)p->threads);
    error = atomic_load(&job.failed) ? NO_MEMORY : DONE;
    goto done;
out_of_memory:
    error = NO_MEMORY;
done:
    free(floats);
    free(is_kept);
    free_layout(&layout);
    return error;
}

/* Bytes of scratch memory that one call uses on all its threads, beside input and output. */
int64_t ssl_workspace_bytes(const Problem *p, const int64_t *rows, const int64_t *columns) {
    Layout layout = {0};
    Job job = {.p = p, .layout = &layout, .kernels = ssl_kernels(p->level, (int)p->is_bfloat16)};
    int64_t bytes = -1, depth = 0;
    if (make_layout(p, job.kernels, rows, columns, &layout)) {
        const int shared = is_shared(p);
        const int64_t element = p->is_bfloat16 ? 2 : 4, copies = shared ? 1 : p->threads;
        choose_panels(&job, shared);
        for (int64_t g = 0; g < p->groups; g++)
            if (layout.group[g].columns > depth) depth = layout.group[g].columns;
        const int64_t width = job.panel_vectors * job.kernels->lanes;
        bytes = copies * ((shared ? p->batch : 1) * layout.image + SLACK) * element +
                p->threads * ((depth + 1) * width + SLACK) * (int64_t)sizeof(float);
    }
    free_layout(&layout);
    return bytes;
}

/* Raised whenever Problem or a signature changes, so that no other version is called by mistake. */
int64_t ssl_interface(void) { return 3; }

/* Name of the instruction set in use at `level`. */
const char *ssl_instruction_set(int64_t level, int64_t is_bfloat16) {
    return ssl_kernels(level, (int)is_bfloat16)->name;
}
