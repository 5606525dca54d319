// The ops of the CUDA backend once more, for CPU tensors and in a namespace of their own: the
// backend's own binding, compiled with three names changed.
#include <torch/library.h>

#include "common/cuda/current_stream.h"
#include "emulator.h"
#include "loss/autograd.h"
#include "schemas.h"

namespace discloss::cuda {

inline cudaStream_t emulated_stream(const at::Device&) { return emulator::stream(); }

}  // namespace discloss::cuda

namespace discloss {
inline constexpr char kEmulated[] = "discloss_cuda_emulated";
}

TORCH_LIBRARY(discloss_cuda_emulated, library) { discloss::define_schemas(library); }

TORCH_LIBRARY_IMPL(discloss_cuda_emulated, Autograd, library) {
  library.impl("forward",
               TORCH_FN(discloss::flat_forward<discloss::Autograd<discloss::kEmulated>::kernel>));
}

#define current_stream emulated_stream
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, name) \
  _TORCH_LIBRARY_IMPL(discloss_cuda_emulated, CPU, name, C10_UID)

#include "loss/cuda/discriminative_loss_cuda.cpp"
