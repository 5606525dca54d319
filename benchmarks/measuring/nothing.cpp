// forward and backward that do nothing: the schemas, the registered gradient and the results of the
// package's ops, but no checks, no workspace and no kernels. What a call of them takes is the host
// time that no implementation of these ops can avoid.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "loss/autograd.h"
#include "loss/discriminative_loss.h"
#include "schemas.h"

namespace discloss {
namespace {

inline constexpr char kNothing[] = "discloss_nothing";

ForwardTuple forward(const ForwardInputs& in) {
  const int64_t images = in.offsets.has_value() ? in.offsets->numel() - 1 : in.labels.size(0);
  const auto empty = [](at::IntArrayRef sizes, const at::TensorOptions& options) {
    return at::empty(sizes, options);
  };
  const at::Tensor slots = empty(in.labels.sizes(), in.embeddings.options().dtype(at::kInt));
  return ForwardResult::allocate(in.embeddings, slots, images, in.max_instances.expect_int(),
                                 in.squeeze, empty)
      .as_tuple();
}

at::Tensor backward(const BackwardInputs& in) { return at::empty_like(in.embeddings); }

}  // namespace
}  // namespace discloss

TORCH_LIBRARY(discloss_nothing, library) { discloss::define_schemas(library); }

TORCH_LIBRARY_IMPL(discloss_nothing, Autograd, library) {
  library.impl("forward",
               TORCH_FN(discloss::flat_forward<discloss::Autograd<discloss::kNothing>::kernel>));
}

TORCH_LIBRARY_IMPL(discloss_nothing, CPU, library) {
  library.impl("forward", TORCH_FN(discloss::flat_forward<discloss::forward>));
  library.impl("backward", TORCH_FN(discloss::flat_backward<discloss::backward>));
}

TORCH_LIBRARY_IMPL(discloss_nothing, CUDA, library) {
  library.impl("forward", TORCH_FN(discloss::flat_forward<discloss::forward>));
  library.impl("backward", TORCH_FN(discloss::flat_backward<discloss::backward>));
}
