// Stands in for libcudart: the launch with its checks, the few functions that the launchers call,
// and the handles by which the tests choose settings and read errors.
#include <unordered_map>

#include "device.h"

namespace emulator {
namespace {

// Of the kernels for which it was set.
std::unordered_map<const void*, std::size_t> shared_memory_attribute;
cudaError_t last_error = cudaSuccess;

cudaError_t refuse(cudaError_t error, const std::string& message) {
  last_error = error;
  device.message = message;
  return error;
}

// Every call comes through here: a broken device refuses it, and so does a stream that is not the
// current one.
cudaError_t check_call(const char* what, cudaStream_t given) {
  if (device.broken) {
    return last_error = cudaErrorLaunchFailure;
  }
  if (given != stream()) {
    return refuse(cudaErrorInvalidResourceHandle,
                  std::string(what) + " is not on the current stream");
  }
  return cudaSuccess;
}

std::string describe(dim3 size) {
  return "(" + std::to_string(size.x) + "," + std::to_string(size.y) + "," +
         std::to_string(size.z) + ")";
}

cudaError_t check_shape(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  const bool some =
      grid.x != 0 && grid.y != 0 && grid.z != 0 && block.x != 0 && block.y != 0 && block.z != 0;
  if (!some || grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) {
    return refuse(cudaErrorInvalidConfiguration,
                  "grid " + describe(grid) + " of blocks " + describe(block));
  }
  if (block.x > kMaxThreadsPerBlock || block.y > kMaxThreadsPerBlock || block.z > 64 ||
      static_cast<std::size_t>(block.x) * block.y * block.z > kMaxThreadsPerBlock) {
    return refuse(cudaErrorInvalidConfiguration, "too many threads: blocks " + describe(block));
  }
  const auto attribute = shared_memory_attribute.find(kernel);
  const std::size_t limit = attribute == shared_memory_attribute.end()
                                ? kSharedMemoryWithoutAttribute
                                : attribute->second;
  if (config.dynamicSmemBytes > limit) {
    return refuse(cudaErrorInvalidValue, std::to_string(config.dynamicSmemBytes) +
                                             " bytes of shared memory, of " +
                                             std::to_string(limit) + " allowed to this kernel");
  }
  return cudaSuccess;
}

// Along x, of which alone a cluster is more than one block wide here. The only launch attribute.
cudaError_t read_cluster(const cudaLaunchConfig_t& config, unsigned* blocks) {
  *blocks = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    const auto& size = attribute.val.clusterDim;
    if (attribute.id != cudaLaunchAttributeClusterDimension || size.y != 1 || size.z != 1) {
      return refuse(cudaErrorNotSupported, "this launch attribute is not emulated");
    }
    if (device.settings.compute_capability < kFirstWithClusters) {
      return refuse(cudaErrorInvalidValue, "this device has no clusters");
    }
    if (size.x == 0 || size.x > kMaxBlocksPerCluster || config.gridDim.x % size.x != 0) {
      return refuse(cudaErrorInvalidClusterSize, "grid " + describe(config.gridDim) +
                                                     " in clusters of " + std::to_string(size.x));
    }
    *blocks = size.x;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   void (*invoke)(const void*), const void* arguments) {
  const std::lock_guard<std::mutex> lock(device.mutex);
  if (const cudaError_t error = check_call("a launch", config.stream); error != cudaSuccess) {
    return error;
  }
  if (const cudaError_t error = check_shape(config, kernel); error != cudaSuccess) {
    return error;
  }
  unsigned cluster = 1;
  if (const cudaError_t error = read_cluster(config, &cluster); error != cudaSuccess) {
    return error;
  }
  ++device.launches;
  run_grid({config.gridDim, config.blockDim, cluster, config.dynamicSmemBytes, invoke, arguments});
  if (device.broken) {
    return last_error = cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace emulator

// --- libcudart -----------------------------------------------------------------------------------

using emulator::device;

extern "C" {

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t stream) {
  const cudaError_t error = emulator::check_call("a memset", stream);
  if (error == cudaSuccess) {
    std::memset(pointer, value, bytes);
  }
  return error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const cudaError_t error = emulator::check_call("a copy", stream);
  if (error == cudaSuccess) {
    std::memcpy(to, from, bytes);
  }
  return error;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return emulator::refuse(cudaErrorNotSupported, "this function attribute is not emulated");
  }
  if (value < 0 || static_cast<std::size_t>(value) > device.settings.shared_memory_per_block) {
    return emulator::refuse(cudaErrorInvalidValue,
                            std::to_string(value) + " bytes of shared memory, of " +
                                std::to_string(device.settings.shared_memory_per_block));
  }
  const std::lock_guard<std::mutex> lock(device.mutex);
  emulator::shared_memory_attribute[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = 10 * device.settings.compute_capability;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.settings.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(emulator::kSharedMemoryWithoutAttribute);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(device.settings.shared_memory_per_block);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value =
          static_cast<int>(device.settings.shared_memory_per_block + emulator::kReservedMemory);
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = emulator::kMaxThreadsPerBlock;
      return cudaSuccess;
    default:
      return emulator::refuse(cudaErrorNotSupported,
                              "device attribute " + std::to_string(attribute) + " is not emulated");
  }
}

cudaError_t cudaPeekAtLastError() { return emulator::last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::last_error;
  if (!device.broken) {
    emulator::last_error = cudaSuccess;
  }
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "unrecognized error code";
  }
}

// With what the emulator knows about it, so that it is in the exception that Python sees.
const char* cudaGetErrorString(cudaError_t error) {
  static std::string text;
  text = cudaGetErrorName(error);
  if (error != cudaSuccess) {
    text += ": " + device.message;
  }
  return text.c_str();
}

// --- for the tests -------------------------------------------------------------------------------

#define EMULATOR_EXPORT __attribute__((visibility("default")))

EMULATOR_EXPORT void emulator_configure(std::uint64_t seed, int compute_capability,
                                        int multiprocessors, int resident_blocks,
                                        std::size_t shared_memory_per_block, bool find_races) {
  device.settings = {compute_capability,      multiprocessors, resident_blocks, seed,
                     shared_memory_per_block, find_races};
  device.launches = 0;
  emulator::shared_memory_attribute.clear();
}

// Repairs a broken device.
EMULATOR_EXPORT void emulator_reset() {
  device.broken = false;
  device.message.clear();
  emulator::last_error = cudaSuccess;
}

// The last error since the device was reset, or an empty string.
EMULATOR_EXPORT const char* emulator_last_message() { return device.message.c_str(); }

EMULATOR_EXPORT std::uint64_t emulator_launches() { return device.launches; }

}  // extern "C"
