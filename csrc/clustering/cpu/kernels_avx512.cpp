// The kernels of the clustering for x86-64 processors with AVX-512.
#if defined(__x86_64__)

// clang-format off: the order matters
#include <immintrin.h>

#include "kernels.h"

#include "common/cpu/begin_avx512.h"
#include "exact_arithmetic.h"

#include "kernel_table.h"

#include "common/cpu/end_instruction_set.h"
// clang-format on

#endif
