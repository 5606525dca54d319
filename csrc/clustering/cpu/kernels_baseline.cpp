// The kernels of the clustering for any processor: 16-byte vectors, which x86-64 (SSE2) and aarch64
// (NEON) always have.
#define DISCLOSS_CPU_TARGET baseline
#define DISCLOSS_CPU_VECTOR_BYTES 16

// clang-format off: the order matters
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "exact_arithmetic.h"

#include "kernel_table.h"
// clang-format on
