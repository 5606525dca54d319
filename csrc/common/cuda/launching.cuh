// Between a binding and its kernels, on the host: what device there is, the launch of a kernel, a
// workspace, the choice of a template by dtype. Torch-free; nothing here waits for the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/cuda/dtypes.h"
#include "common/cuda/portability.cuh"
#include "common/cuda/tuning.h"

#define DISCLOSS_RETURN_IF_ERROR(expression)  \
  do {                                        \
    const cudaError_t error_ = (expression);  \
    if (error_ != cudaSuccess) return error_; \
  } while (false)

namespace discloss::cuda {

struct Device {
  int multiprocessors;
  int architecture;  // that the kernels it runs were compiled for, 90 for sm_90: may be less than
                     // its own, where it compiles PTX
  int shared_bytes;  // the most a block may ask for
  int shared_bytes_per_multiprocessor;  // for all blocks that are resident
};

// kernel: any, all are compiled for the same architectures
template <typename... Parameters>
cudaError_t current_device(void (*kernel)(Parameters...), Device* device) {
  int index = 0;
  DISCLOSS_RETURN_IF_ERROR(cudaGetDevice(&index));
  DISCLOSS_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index));
  cudaFuncAttributes attributes = {};
  DISCLOSS_RETURN_IF_ERROR(
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
  device->architecture = attributes.ptxVersion;
  DISCLOSS_RETURN_IF_ERROR(cudaDeviceGetAttribute(&device->shared_bytes,
                                                  cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  return cudaDeviceGetAttribute(&device->shared_bytes_per_multiprocessor,
                                cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
}

constexpr size_t kReservedSharedBytes = 1024;  // of each block, for the system

// The blocks that a multiprocessor has shared memory for.
inline int64_t blocks_in_shared_memory(const Device& device, size_t bytes_of_a_block) {
  return static_cast<int64_t>(static_cast<size_t>(device.shared_bytes_per_multiprocessor) /
                              (bytes_of_a_block + kReservedSharedBytes));
}

// Where kernels are launched. Dependent ones wait for those ahead themselves, so that their blocks
// may come early (follow_previous_kernel).
struct Queue {
  cudaStream_t stream;
  int max_shared_bytes = 0;  // of a block
  bool dependent = false;
};

inline Queue queue_of(const Device& device, cudaStream_t stream) {
  return {stream, device.shared_bytes,
          kDependentLaunches && device.architecture >= kFirstWithClusters};
}

struct Grid {
  int64_t blocks;
  int threads;              // of a block
  size_t shared_bytes = 0;  // of a block, dynamic
  int cluster = 1;          // blocks that wait for each other
};

// Launches nothing for an empty grid. More than 48 KB of dynamic shared memory must be asked for;
// by all threads of the process for the same kernel, so each allows as much as there is.
template <typename... Parameters, typename... Given>
cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, const Queue& queue,
                   Given&&... arguments) {
  if (grid.blocks == 0) {
    return cudaSuccess;
  }
  if (grid.shared_bytes > 48 * 1024) {
    DISCLOSS_RETURN_IF_ERROR(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  queue.max_shared_bytes));
  }
  if (grid.blocks > INT32_MAX) {
    return cudaErrorInvalidConfiguration;
  }
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = queue.stream;
  config.attrs = attributes;
  if (queue.dependent) {
    cudaLaunchAttribute& dependent = attributes[config.numAttrs++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(grid.cluster);
    cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Given>(arguments)...);
}

// Hands out arrays in a workspace, each aligned; with a null base it only measures.
class Workspace {
 public:
  static constexpr size_t kAlignment = 256;

  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

// Calls function(a value of the type).
template <typename Function>
cudaError_t dispatch_scalar(ScalarType type, Function function) {
  switch (type) {
    case ScalarType::kFloat32:
      return function(float{});
    case ScalarType::kFloat64:
      return function(double{});
    case ScalarType::kFloat16:
      return function(__half{});
    default:
      return function(__nv_bfloat16{});
  }
}

}  // namespace discloss::cuda
