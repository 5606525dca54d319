// The kernels for the processor that this runs on.
#pragma once

#include "common/cpu/instruction_set.h"
#include "kernels.h"

namespace discloss::cpu {

template <typename scalar_t>
const Kernels<scalar_t>& best_kernels(int64_t norm, int64_t channels) {
  switch (best_instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512:
      return avx512::kernels<scalar_t>(norm, channels);
    case InstructionSet::kAvx2:
      return avx2::kernels<scalar_t>(norm, channels);
#endif
    default:
      return baseline::kernels<scalar_t>(norm, channels);
  }
}

}  // namespace discloss::cpu
