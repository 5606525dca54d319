// The ops of the CUDA backend once more, for CPU tensors and in a namespace of their own: the
// backend's own binding, compiled with three names changed. tests/ptx gives its own two of them.
#include <torch/library.h>

#include "common/cuda/current_stream.h"
#include "emulator.h"
#include "loss/autograd.h"
#include "schemas.h"

#ifndef EMULATED_NAMESPACE
#define EMULATED_NAMESPACE discloss_cuda_emulated
#define EMULATED_KEY CPU
#endif

namespace discloss::cuda {

inline cudaStream_t emulated_stream(const at::Device&) { return emulator::stream(); }

}  // namespace discloss::cuda

namespace discloss {
inline constexpr char kEmulated[] = C10_STRINGIZE(EMULATED_NAMESPACE);
}

// The macros of torch paste the name, so that it must be expanded first.
#define DEFINE_OPS(name) TORCH_LIBRARY(name, library)
#define IMPLEMENT_OPS(name, key, library) _TORCH_LIBRARY_IMPL(name, key, library, C10_UID)

DEFINE_OPS(EMULATED_NAMESPACE) { discloss::define_schemas(library); }

IMPLEMENT_OPS(EMULATED_NAMESPACE, Autograd, library) {
  library.impl("forward",
               TORCH_FN(discloss::flat_forward<discloss::Autograd<discloss::kEmulated>::kernel>));
}

#define current_stream emulated_stream
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, name) IMPLEMENT_OPS(EMULATED_NAMESPACE, EMULATED_KEY, name)

#include "loss/cuda/discriminative_loss_cuda.cpp"
