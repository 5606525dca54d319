// Which memory kernels may touch: the tensors that a call is given, and what torch allocates while
// it is recorded, between red zones.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>

#include "memory.h"

namespace {

class Recorder final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) {
      return {nullptr, nullptr, &release, cpu};
    }
    void* base = c10::alloc_cpu(bytes + 2 * kRedZone);
    void* memory = static_cast<char*>(base) + kRedZone;
    ptx::allow(memory, bytes);
    c10::profiledCPUMemoryReporter().New(memory, bytes);
    return {memory, memory, &release, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }

 private:
  static constexpr std::size_t kRedZone = 4096;  // a multiple of torch's alignment

  static void release(void* memory) {
    if (memory != nullptr) {
      ptx::forbid(memory);
      c10::profiledCPUMemoryReporter().Delete(memory);
      c10::free_cpu(static_cast<char*>(memory) - kRedZone);
    }
  }
};

// While it lives, kernels may touch the tensors among some arguments.
class Given {
 public:
  explicit Given(c10::ArrayRef<c10::IValue> arguments) {
    for (const c10::IValue& argument : arguments) {
      if (argument.isTensor() && argument.toTensor().defined()) {
        const c10::Storage& storage = argument.toTensor().storage();
        ptx::give(storage.data(), storage.nbytes());
      }
    }
  }
  ~Given() { ptx::take_back_given(); }
  Given(const Given&) = delete;
  Given& operator=(const Given&) = delete;
};

// The binding's own kernels are registered under another key (build.py), which this one calls.
void call_with_given_tensors(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Given given(torch::jit::last(*stack, op.schema().arguments().size()));
  op.callBoxedForDispatchKey(c10::DispatchKey::PrivateUse1, *stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(discloss_cuda_compiled, CPU, library) {
  for (const char* name : {"forward", "backward", "count_instances", "batch_offsets"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&call_with_given_tensors>());
  }
}

extern "C" __attribute__((visibility("default"))) void ptx_record_memory(bool wanted) {
  static Recorder recorder;
  static c10::Allocator* const usual = c10::GetAllocator(c10::DeviceType::CPU);
  constexpr std::uint8_t kHighestPriority = 255;
  c10::SetAllocator(c10::DeviceType::CPU, wanted ? &recorder : usual, kHighestPriority);
}
