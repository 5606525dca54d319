// What nvcc's own code asks of libcudart beside what the emulator's runtime.cpp stands in for: its
// kernels are registered and launched here. The tests choose which PTX a device runs, and read what
// was executed.
#include <algorithm>
#include <fstream>
#include <map>
#include <string>

#include "../emulator/device.h"
#include "access_counts.h"
#include "grid.h"
#include "memory.h"
#include "parser.h"

namespace emulator {

Device device;

void break_device(const std::string& message) {
  device.broken = true;
  device.message = message + " [seed " + std::to_string(device.settings.seed) + ", launch " +
                   std::to_string(device.launches) + "]";
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   void (*invoke)(const void*), const void* arguments);

}  // namespace emulator

namespace ptx {
namespace {

// Of kernels, by the host's function. They are registered before other static objects are made.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> made;
  return made;
}

std::uint64_t most_turns = ~std::uint64_t{0};
std::map<int, std::vector<std::string>> files;
std::map<int, Kernels> loaded;  // by compute capability

Kernels& kernels_of(int capability) {
  const auto [found, is_new] = loaded.try_emplace(capability);
  if (is_new) {
    for (const std::string& path : files[capability]) {
      parse(path, found->second);
    }
  }
  return found->second;
}

struct Call {
  const void* kernel;
  void** arguments;
};

void run(const emulator::KernelCall& call) {
  const auto& [function, arguments] = *static_cast<const Call*>(call.arguments);
  Kernels& kernels = kernels_of(emulator::device.settings.compute_capability);
  const auto found = kernels.find(names().at(function));
  if (found == kernels.end()) {
    throw Fault("not in the PTX: " + names().at(function));
  }
  Kernel& kernel = found->second;
  if (!kernel.error.empty()) {
    throw Fault(kernel.name + ": " + kernel.error);
  }
  if (kernel.max_threads != 0 && call.block.x > kernel.max_threads) {
    throw Fault(kernel.name + ": more threads than it was compiled for");
  }
  Launch launch = {kernel, call.grid.x, call.block.x, call.cluster, call.shared_bytes, {}};
  launch.parameters.resize(kernel.parameter_bytes);
  for (std::size_t i = 0; i < kernel.parameters.size(); ++i) {
    const Parameter& parameter = kernel.parameters[i];
    std::memcpy(launch.parameters.data() + parameter.offset, arguments[i], parameter.bytes);
  }
  ++kernel.launches;
  kernel.blocks += launch.blocks;
  kernel.threads = std::max(kernel.threads, launch.threads);
  kernel.shared_bytes = std::max(kernel.shared_bytes, launch.shared_bytes);
  const emulator::Settings& settings = emulator::device.settings;
  Grid grid(launch, static_cast<unsigned>(settings.resident_blocks),
            settings.seed ^ emulator::device.launches << 48, most_turns);
  if (const std::string fault = grid.run(); !fault.empty()) {
    throw Fault(fault);
  }
}

}  // namespace
}  // namespace ptx

void emulator::run_grid(const KernelCall& call) {
  try {
    ptx::run(call);
  } catch (const ptx::Fault& fault) {
    break_device(fault.what());
  }
}

extern "C" {

// --- libcudart -----------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  ptx::names()[function] = name;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  const ptx::Call call = {function, arguments};
  return emulator::launch(*config, function, nullptr, &call);
}

// Of launches written <<<>>>: there are none, but the stubs that nvcc writes have them.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void*) {
  *kernel = nullptr;
  return cudaErrorNotSupported;
}
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}

// --- for the tests -------------------------------------------------------------------------------

#define PTX_EXPORT __attribute__((visibility("default")))

// The files that devices of a compute capability run instead of those they ran so far.
PTX_EXPORT void ptx_choose(int capability) {
  ptx::files[capability].clear();
  ptx::loaded.erase(capability);
}
PTX_EXPORT void ptx_add_file(int capability, const char* path) {
  ptx::files[capability].emplace_back(path);
}

PTX_EXPORT void ptx_give(const void* memory, std::size_t bytes) { ptx::give(memory, bytes); }
PTX_EXPORT void ptx_take_back_given() { ptx::take_back_given(); }

// Of the warps of a launch: one with more fails.
PTX_EXPORT void ptx_limit_turns(std::uint64_t most) { ptx::most_turns = most; }

PTX_EXPORT void ptx_count_accesses(bool wanted) { ptx::count_accesses(wanted); }

PTX_EXPORT void ptx_clear_counts() {
  for (auto& [capability, kernels] : ptx::loaded) {
    for (auto& [name, kernel] : kernels) {
      kernel.launches = kernel.blocks = 0;
      kernel.threads = 0;
      kernel.shared_bytes = 0;
      for (ptx::Instruction& instruction : kernel.code) {
        instruction.counts = {};
      }
    }
  }
}

// A line for every instruction: kernel, line of its file, name, and its counts.
PTX_EXPORT void ptx_write_counts(int capability, const char* path) {
  std::ofstream file(path);
  for (const auto& [name, kernel] : ptx::kernels_of(capability)) {
    for (const ptx::Instruction& instruction : kernel.code) {
      const ptx::Counts& counts = instruction.counts;
      file << name << '\t' << instruction.line << '\t' << instruction.name << '\t' << counts.warps
           << '\t' << counts.lanes << '\t' << counts.sectors << '\t' << counts.least_sectors << '\t'
           << counts.wavefronts << '\t' << counts.least_wavefronts << '\n';
    }
  }
}

// A line for every kernel that has been launched: its name, launches, blocks, and of a block
// threads and bytes of shared memory.
PTX_EXPORT void ptx_write_launches(int capability, const char* path) {
  std::ofstream file(path);
  for (const auto& [name, kernel] : ptx::kernels_of(capability)) {
    if (kernel.launches > 0) {
      file << name << '\t' << kernel.launches << '\t' << kernel.blocks << '\t' << kernel.threads
           << '\t' << kernel.shared_bytes << '\n';
    }
  }
}

}  // extern "C"
