/* Kernels for AVX-512: thirty-two registers of sixteen lanes. */
#if defined(__x86_64__)
#include <string.h>

#include "column_sparse.h"

#define NAME(x) avx512_##x
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,fma,prefer-vector-width=512")))
#define LANES 16
#define TILE_ROWS 8
#define TILE_VECTORS 3
#include "multiply.inc.h"

const Kernels ssl_avx512 = {"avx512", LANES, TILE_VECTORS, 0,
                            avx512_pack, avx512_pack_bfloat16, avx512_multiply};
#endif
