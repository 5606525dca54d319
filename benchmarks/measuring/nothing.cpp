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

ForwardTuple forward(const at::Tensor& embeddings, const at::Tensor& labels,
                     const std::optional<at::Tensor>& offsets, int64_t max_instances, double,
                     double, double, double, double, int64_t, at::IntArrayRef, bool squeeze) {
  const int64_t images = offsets.has_value() ? offsets->numel() - 1 : labels.size(0);
  const auto empty = [](at::IntArrayRef sizes, const at::TensorOptions& options) {
    return at::empty(sizes, options);
  };
  const at::Tensor slots = empty(labels.sizes(), embeddings.options().dtype(at::kInt));
  return ForwardResult::allocate(embeddings, slots, images, max_instances, squeeze, empty)
      .as_tuple();
}

at::Tensor backward(const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                    const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                    const at::Tensor& embeddings, const std::optional<at::Tensor>&,
                    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                    const at::Tensor&, const at::Tensor&, double, double, double, double, double,
                    int64_t) {
  return at::empty_like(embeddings);
}

}  // namespace
}  // namespace discloss

TORCH_LIBRARY(discloss_nothing, library) { discloss::define_schemas(library); }

TORCH_LIBRARY_IMPL(discloss_nothing, Autograd, library) {
  library.impl("forward", TORCH_FN(discloss::Autograd<discloss::kNothing>::kernel));
}

TORCH_LIBRARY_IMPL(discloss_nothing, CPU, library) {
  library.impl("forward", discloss::forward);
  library.impl("backward", discloss::backward);
}

TORCH_LIBRARY_IMPL(discloss_nothing, CUDA, library) {
  library.impl("forward", discloss::forward);
  library.impl("backward", discloss::backward);
}
