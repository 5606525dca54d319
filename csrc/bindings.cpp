// The ops' schemas, forward's gradient, and the Python module that carries them. Backends register
// themselves.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "autograd.h"
#include "schemas.h"

namespace discloss {
inline constexpr char kNamespace[] = "discloss_cuda";
}

TORCH_LIBRARY(discloss_cuda, library) { discloss::define_schemas(library); }

TORCH_LIBRARY_IMPL(discloss_cuda, Autograd, library) {
  library.impl("forward", TORCH_FN(discloss::Autograd<discloss::kNamespace>::kernel));
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled ops of discloss_cuda; importing it registers torch.ops.discloss_cuda.";
  module.attr("built_for_torch") = TORCH_VERSION;
  module.attr("with_cuda") = static_cast<bool>(DISCLOSS_WITH_CUDA);
  module.attr("cuda_architectures") = DISCLOSS_CUDA_ARCHITECTURES;
  module.attr("cuda_version") = DISCLOSS_CUDA_VERSION;
}
