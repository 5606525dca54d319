// The kernels for the processor that this runs on.
#pragma once

#include <ATen/Version.h>

#include <string>

#include "kernels.h"

namespace discloss::cpu {

// The best table that this processor can run, within what ATEN_CPU_CAPABILITY allows torch.
template <typename scalar_t>
const Kernels<scalar_t>& best_kernels(int64_t norm, int64_t channels) {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return avx512::kernels<scalar_t>(norm, channels);
  }
  if (capability == "AVX2") {
    return avx2::kernels<scalar_t>(norm, channels);
  }
#endif
  return baseline::kernels<scalar_t>(norm, channels);
}

}  // namespace discloss::cpu
