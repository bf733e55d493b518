/* Kernels for AVX2 with FMA: sixteen registers of eight lanes. */
#if defined(__x86_64__)
#include <math.h>
#include <string.h>

#include "column_sparse.h"

#define NAME(x) avx2_##x
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define TILE_ROWS 4
#define TILE_VECTORS 3
#include "multiply.inc.h"
#include "between.inc.h"

const Kernels ssl_avx2 = {
    .name = "avx2",
    .lanes = LANES,
    .tile_vectors = TILE_VECTORS,
    .fill = avx2_fill,
    .fill_bfloat16 = avx2_fill_bfloat16,
    .pack = avx2_pack,
    .pack_bfloat16 = avx2_pack_bfloat16,
    .multiply = avx2_multiply,
    .pick = avx2_pick,
    .max_pool = avx2_max_pool,
    .response_norm = avx2_response_norm,
};
#endif
