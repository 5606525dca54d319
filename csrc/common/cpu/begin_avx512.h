// What is included from here to end_instruction_set.h is compiled for AVX-512, into a namespace of
// its own. Headers that other sources share come before this one, so that none of their functions
// is compiled for AVX-512; those that simd.h needs do here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define DISCLOSS_CPU_TARGET avx512
#define DISCLOSS_CPU_VECTOR_BYTES 64

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
