// The kernels for x86-64 processors with AVX2.
#if defined(__x86_64__)

// Headers that other files share come first, so that none of their functions is compiled for
// AVX2.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"

#define DISCLOSS_CPU_TARGET avx2
#define DISCLOSS_CPU_VECTOR_BYTES 32

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "kernel_table.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
