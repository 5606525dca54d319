// Functions for host and device alike; torch-free.
#pragma once

#include <cstdint>

// Always inlined: the CPU backend compiles these for several instruction sets, and one that is
// emitted as a function would be shared among them.
#if defined(__CUDACC__)
#define DISCLOSS_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DISCLOSS_HOST_DEVICE inline __attribute__((always_inline))
#else
#define DISCLOSS_HOST_DEVICE inline
#endif

namespace discloss {

// `yes` or `no`, as a branchless formula has it; a SIMD vector brings its own.
template <typename T>
DISCLOSS_HOST_DEVICE T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

DISCLOSS_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace discloss
