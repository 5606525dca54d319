// Kernels for the test of the emulator: right ones, and ones with a mistake that must be reported.
// One file, since each mistake is a branch of one of them.
#include "emulator.h"

namespace {

// What a cluster may do wrong; test_emulator.py has the same list.
enum ClusterMistake {
  kNoMistake,
  kNoClusterBarrierBeforeRead,
  kNoClusterBarrierBeforeReuse,
  kReadOfAnotherCluster,
  kWaitWithoutArrival,
  kTwoArrivals,
  kBlockBarrierInstead,  // in one thread
};

// The mistakes; test_emulator.py has the same list.
enum Mistake {
  kNone,
  kNoBarrierBeforeRead,   // partial sums are read before all of them are written
  kNoBarrierBeforeReuse,  // and overwritten before all of them are read
  kNotInitialised,
  kPlainAddShared,  // instead of an atomic one
  kPlainAddGlobal,
  kDivergentBarrier,
  kAbsentLane,
  kNotInMask,
  kDifferentMasks,
  kDifferentOperations,
  kDeadlock,
  kOutsideSharedMemory,
  kMisaligned,
  kMisalignedLdg,
  kNullPointer,
  kWildPointer,
  kOutsideArray,
  kTrap,
  kReadOutsideBuffer,
  kWriteOutsideBuffer,
  kReadOutsideSharedMemory,
};

constexpr unsigned kFullMask = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullMask, value, offset);
  }
  return value;
}

// `partials` has room for one float a warp and is used again by the next call.
__device__ float block_sum(float value, float* partials, int mistake) {
  const unsigned warp = threadIdx.x / 32;
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) {
    partials[warp] = value;
  }
  if (mistake != kNoBarrierBeforeRead) {
    __syncthreads();
  }
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) {
    sum += partials[i];
  }
  if (mistake != kNoBarrierBeforeReuse) {
    __syncthreads();
  }
  return sum;
}

// sums[0] += sum of x, sums[1] += sum of its squares; counts[k] += number of x whose `bin` is k.
__global__ void __launch_bounds__(256)
    sums_kernel(const float* x, const int* bin, int n, float* sums, int* counts, int bins,
                int mistake) {
  float* partials = reinterpret_cast<float*>(emulator::dynamic_shared());
  int* local_counts = reinterpret_cast<int*>(partials + 8);
  if (mistake != kNotInitialised) {
    for (int k = static_cast<int>(threadIdx.x); k < bins; k += static_cast<int>(blockDim.x)) {
      local_counts[k] = 0;
    }
  }
  __syncthreads();
  float sum = 0;
  float squares = 0;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    sum += x[i];
    squares += x[i] * x[i];
    if (mistake == kPlainAddShared) {
      ++local_counts[bin[i]];
    } else {
      atomicAdd(&local_counts[bin[i]], 1);
    }
  }
  sum = block_sum(sum, partials, mistake);
  squares = block_sum(squares, partials, mistake);
  if (threadIdx.x == 0) {
    atomicAdd(&sums[0], sum);
    atomicAdd(&sums[1], squares);
  }
  __syncthreads();
  for (int k = static_cast<int>(threadIdx.x); k < bins; k += static_cast<int>(blockDim.x)) {
    if (mistake == kPlainAddGlobal) {
      counts[k] += local_counts[k];
    } else {
      atomicAdd(&counts[k], local_counts[k]);
    }
  }
}

// The block that comes last sees what all others have written: counts[gridDim.x] = the sum of the
// others.
__global__ void last_block_kernel(int* counts, unsigned* ticket) {
  int* is_last = reinterpret_cast<int*>(emulator::dynamic_shared());
  atomicAdd(&counts[blockIdx.x], 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (*is_last && threadIdx.x < gridDim.x) {
    atomicAdd(&counts[gridDim.x], __ldcg(&counts[threadIdx.x]));
  }
}

__device__ void cluster_barrier() {
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}

// Each block of a cluster writes its number, and reads those of all, `rounds` times over. sums[i] =
// the sum of what block i has read.
__global__ void cluster_kernel(int* numbers, int* sums, int cluster, int rounds, int mistake) {
  const int block = static_cast<int>(blockIdx.x), first = block / cluster * cluster;
  const bool is_other = mistake == kReadOfAnotherCluster && first > 0;
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) {
      numbers[block] = block + round;
    }
    if (mistake == kWaitWithoutArrival) {
      __cluster_barrier_wait();
    } else if (mistake == kTwoArrivals) {
      __cluster_barrier_arrive();
      __cluster_barrier_arrive();
    } else if (mistake == kBlockBarrierInstead && block == 0 && threadIdx.x == 0) {
      __syncthreads();
    } else if (mistake != kNoClusterBarrierBeforeRead) {
      cluster_barrier();
    }
    for (int i = 0; i < cluster; ++i) {
      sum += numbers[is_other ? i : first + i];
    }
    if (mistake != kNoClusterBarrierBeforeReuse) {
      cluster_barrier();
    }
  }
  if (threadIdx.x == 0) {
    sums[block] = sum;
  }
}

// Threads take slots of a table by compare-and-swap until each key has one.
__global__ void hash_kernel(const long long* keys, int n, unsigned long long* table, int* slots,
                            int capacity) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) {
    return;
  }
  const auto key = static_cast<unsigned long long>(keys[i]);
  int slot = static_cast<int>(key % static_cast<unsigned long long>(capacity));
  for (;;) {
    const unsigned long long found = atomicCAS(&table[slot], ~0ull, key);
    if (found == ~0ull || found == key) {
      break;
    }
    slot = (slot + 1) % capacity;
  }
  slots[i] = slot;
}

// One row of `out` a thread: what each built-in returns to it.
__global__ void built_ins_kernel(int* out, int columns) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  int* row = out + thread * columns;
  *row++ = __shfl_sync(kFullMask, thread, 3);
  *row++ = __shfl_sync(kFullMask, thread, lane + 1, 8);
  *row++ = __shfl_up_sync(kFullMask, thread, 2, 16);
  *row++ = __shfl_down_sync(kFullMask, thread, 5, 8);
  *row++ = __shfl_xor_sync(kFullMask, thread, 9, 8);
  *row++ = static_cast<int>(__shfl_xor_sync(kFullMask, thread * (1ll << 33), 1) >> 33);
  *row++ = static_cast<int>(__ballot_sync(kFullMask, lane % 3 == 0));
  *row++ = __any_sync(kFullMask, thread == 33);
  *row++ = __all_sync(kFullMask, thread != 33);
  *row++ = static_cast<int>(__match_any_sync(kFullMask, lane / 5));
  *row++ = __syncthreads_count(thread % 3 == 0);
  *row++ = __syncthreads_and(thread < 63);
  *row++ = __syncthreads_or(thread == 63);
  if (lane < 8) {  // half of a warp may meet alone
    *row = __shfl_xor_sync(0xffu, thread, 4);
  } else {
    *row = __shfl_xor_sync(0xffffff00u, thread, 1);
  }
}

__global__ void mistakes_kernel(float* data, int mistake) {
  float* shared = reinterpret_cast<float*>(emulator::dynamic_shared());
  const unsigned lane = threadIdx.x % 32;
  constexpr float kTable[4] = {1, 2, 3, 4};
  switch (mistake) {
    case kDivergentBarrier:
      if (threadIdx.x < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case kAbsentLane:
      if (lane < 16) {
        data[threadIdx.x] = __shfl_down_sync(0xffffu, data[threadIdx.x], 8);
      }
      break;
    case kNotInMask:
      __syncwarp(0x0000ffffu);
      break;
    case kDifferentMasks:
      __syncwarp(lane < 16 ? 0x0000ffffu : 0xffffffffu);
      break;
    case kDifferentOperations:
      if (lane < 16) {
        __syncwarp();
      } else {
        data[threadIdx.x] = __shfl_xor_sync(kFullMask, data[threadIdx.x], 1);
      }
      break;
    case kDeadlock:
      if (lane == 0) {
        __syncthreads();
      }
      __syncwarp();
      break;
    case kOutsideSharedMemory:
      shared[blockDim.x + threadIdx.x] = 1;
      break;
    case kMisaligned:
      if (threadIdx.x == 0) {
        *reinterpret_cast<float4*>(data) = *reinterpret_cast<const float4*>(data + 1);
      }
      break;
    case kMisalignedLdg:
      if (threadIdx.x == 0) {
        *reinterpret_cast<float4*>(data) = __ldg(reinterpret_cast<const float4*>(data + 1));
      }
      break;
    case kNullPointer:
      data[0] = 1;  // the host has passed a null pointer
      break;
    case kWildPointer:
      data[threadIdx.x] = data[threadIdx.x + (1ull << 44)];
      break;
    case kOutsideArray:
      data[threadIdx.x] = kTable[threadIdx.x % 5];
      break;
    case kReadOutsideBuffer:
      data[threadIdx.x] += data[threadIdx.x + 5];
      break;
    case kWriteOutsideBuffer:
      data[threadIdx.x + 5] = 1;
      break;
    case kReadOutsideSharedMemory:
      data[threadIdx.x] = shared[threadIdx.x + 1];
      break;
    case kTrap:
      if (threadIdx.x == 5) {
        __trap();
      }
      break;
    default:
      data[threadIdx.x] = shared[threadIdx.x];
  }
}

cudaLaunchConfig_t make_config(int blocks, int threads, std::size_t shared_bytes,
                               cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return config;
}

}  // namespace

#define SAMPLE extern "C" __attribute__((visibility("default")))

SAMPLE cudaError_t sample_sums(const float* x, const int* bin, int n, float* sums, int* counts,
                               int bins, int blocks, int mistake) {
  const auto config = make_config(blocks, 256, sizeof(float) * (8 + static_cast<std::size_t>(bins)),
                                  emulator::stream());
  return cudaLaunchKernelEx(&config, sums_kernel, x, bin, n, sums, counts, bins, mistake);
}

SAMPLE cudaError_t sample_last_block(int* counts, unsigned* ticket, int blocks) {
  const auto config = make_config(blocks, 64, sizeof(int), emulator::stream());
  return cudaLaunchKernelEx(&config, last_block_kernel, counts, ticket);
}

SAMPLE cudaError_t sample_cluster(int* numbers, int* sums, int blocks, int cluster, int mistake) {
  constexpr int kRounds = 2;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  auto config = make_config(blocks, 64, 0, emulator::stream());
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, cluster_kernel, numbers, sums, cluster, kRounds, mistake);
}

SAMPLE cudaError_t sample_hash(const long long* keys, int n, unsigned long long* table, int* slots,
                               int capacity) {
  const auto config = make_config((n + 63) / 64, 64, 0, emulator::stream());
  return cudaLaunchKernelEx(&config, hash_kernel, keys, n, table, slots, capacity);
}

SAMPLE cudaError_t sample_built_ins(int* out, int columns) {
  const auto config = make_config(1, 64, 0, emulator::stream());
  return cudaLaunchKernelEx(&config, built_ins_kernel, out, columns);
}

SAMPLE cudaError_t sample_mistake(float* data, int mistake) {
  const auto config = make_config(1, 64, 64 * sizeof(float), emulator::stream());
  return cudaLaunchKernelEx(&config, mistakes_kernel, mistake == kNullPointer ? nullptr : data,
                            mistake);
}

// data is of at least `threads` floats.
SAMPLE cudaError_t sample_launch(float* data, int blocks, int threads, std::size_t shared_bytes,
                                 bool set_attribute, bool on_other_stream) {
  if (set_attribute) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(mistakes_kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      return error;
    }
  }
  const auto config =
      make_config(blocks, threads, shared_bytes, on_other_stream ? nullptr : emulator::stream());
  return cudaLaunchKernelEx(&config, mistakes_kernel, data, static_cast<int>(kNone));
}

SAMPLE cudaError_t sample_memset(float* data, bool on_other_stream) {
  return cudaMemsetAsync(data, 0, sizeof(float), on_other_stream ? nullptr : emulator::stream());
}

SAMPLE const char* sample_error_string(cudaError_t error) { return cudaGetErrorString(error); }
