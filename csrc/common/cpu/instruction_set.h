// What the processor that this runs on can execute.
#pragma once

#include <ATen/Version.h>

#include <string>

namespace discloss::cpu {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The best that there are kernels for, within what ATEN_CPU_CAPABILITY allows torch.
inline InstructionSet best_instruction_set() {
  static const InstructionSet best = [] {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") {
      return InstructionSet::kAvx512;
    }
    if (capability == "AVX2") {
      return InstructionSet::kAvx2;
    }
#endif
    return InstructionSet::kBaseline;
  }();
  return best;
}

}  // namespace discloss::cpu
