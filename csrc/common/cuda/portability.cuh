// What device code needs in order to compile with nvcc, or with a host compiler for the emulator of
// tests/emulator. Nothing else under csrc/ knows that the emulator exists.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "common/cuda/tuning.h"

#ifdef DISCLOSS_EMULATED
#include "emulator.h"
#define DISCLOSS_DYNAMIC_SHARED(name) unsigned char* name = ::emulator::dynamic_shared()
#else
// The only way to dynamic shared memory; 16 bytes is the widest access.
#define DISCLOSS_DYNAMIC_SHARED(name)                               \
  extern __shared__ __align__(16) unsigned char discloss_shared_[]; \
  unsigned char* name = discloss_shared_
#endif

namespace discloss::cuda {

// First in every kernel: lets the blocks of the next one come, once all of this one are there, and
// waits until the one ahead in the stream has ended and what it wrote can be seen. Since every
// kernel waits, none can pass any of those before it.
__device__ __forceinline__ void follow_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kDependentLaunches) {
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
  }
#endif
}

// Kernels that are compiled for this architecture or a later one may be launched in clusters of
// blocks, which wait for each other, and may come before the kernel ahead has ended.
constexpr int kFirstWithClusters = 90;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

// Waits for all threads of the cluster; what they have written before, all of them see then.
__device__ __forceinline__ void cluster_barrier() {
#if defined(DISCLOSS_EMULATED) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#endif
}

// The sum of the lanes of a warp, for all of them.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Ends the launch as a failed assertion does, in every build: an error that cannot be missed, where
// a NaN would be skipped silently by a gradient scaler. The message is the format itself: printf
// arguments would need a stack frame.
__device__ inline void device_assert(bool condition, const char* message) {
  if (!condition) {
    printf(message);
    __trap();
  }
}

// The type that few values are summed in.
template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <typename scalar_t>
__device__ __forceinline__ typename Accumulate<scalar_t>::type to_accumulate(scalar_t value) {
  return value;
}
template <>
__device__ __forceinline__ float to_accumulate(__half value) {
  return __half2float(value);
}
template <>
__device__ __forceinline__ float to_accumulate(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

// Rounds once, to nearest; overflow gives inf.
template <typename scalar_t>
__device__ __forceinline__ scalar_t round_to(typename Accumulate<scalar_t>::type value) {
  return value;
}
template <>
__device__ __forceinline__ __half round_to<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 round_to<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

}  // namespace discloss::cuda
