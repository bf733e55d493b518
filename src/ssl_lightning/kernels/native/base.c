/* Portable kernels: four lanes, which every 64-bit processor has. */
#include <math.h>
#include <string.h>

#include "column_sparse.h"

#define NAME(x) base_##x
#define TARGET
#define LANES 4
#define TILE_ROWS 4
#define TILE_VECTORS 3
#include "multiply.inc.h"
#include "between.inc.h"

const Kernels ssl_base = {
    .name = "base",
    .lanes = LANES,
    .tile_vectors = TILE_VECTORS,
    .fill = base_fill,
    .fill_bfloat16 = base_fill_bfloat16,
    .pack = base_pack,
    .pack_bfloat16 = base_pack_bfloat16,
    .multiply = base_multiply,
    .pick = base_pick,
    .max_pool = base_max_pool,
    .response_norm = base_response_norm,
};
