// The ops' schemas and the Python module that carries them. Backends register themselves.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "schemas.h"

TORCH_LIBRARY(discloss_cuda, library) { discloss::define_schemas(library); }

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled ops of discloss_cuda; importing it registers torch.ops.discloss_cuda.";
  module.attr("built_for_torch") = TORCH_VERSION;
  module.attr("with_cuda") = static_cast<bool>(DISCLOSS_WITH_CUDA);
  module.attr("cuda_architectures") = DISCLOSS_CUDA_ARCHITECTURES;
  module.attr("cuda_version") = DISCLOSS_CUDA_VERSION;
}
