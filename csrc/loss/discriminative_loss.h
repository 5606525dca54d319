// The contract of the ops: what every tensor is, once. Each backend (cpu/, cuda/) implements
// these four functions, of the types below, and registers them for its dispatch key.
//
//   B images (clips, volumes, clouds) . D channels of an embedding . N pixels of an image
//   M = max_instances . K <= M instances of an image . accscalar_t: float, or double for double
//
// The loss is that of De Brabandere et al., arXiv 1708.02551, eq. 1-4; docs/design.md derives the
// gradient.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>

#include "parameters.h"

namespace discloss {

using ForwardTuple = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// What forward returns. Everything but the first four is for backward and free of the weights and
// of the upstream gradient. Rows k >= K of an image are zero.
struct ForwardResult {
  // Loss and terms of one image have shape [] where the call says `squeeze`.
  at::Tensor loss;            // [B] accscalar_t   alpha variance + beta distance + gamma reg.
  at::Tensor variance;        // [B] accscalar_t   L_var
  at::Tensor distance;        // [B] accscalar_t   L_dist
  at::Tensor regularization;  // [B] accscalar_t   L_reg
  at::Tensor slots;      // int32, shape of labels  rank of the pixel's id in its image; -1: ignored
  at::Tensor instances;  // [B] int64               K
  at::Tensor counts;     // [B, M] int64            N_k
  at::Tensor means;      // [B, M, D] accscalar_t   mu_k
  at::Tensor pull;       // [B, M, D] accscalar_t   2/(K N_k) sum_{i in k} h_i d|v_i|
  at::Tensor push;       // [B, M, D] accscalar_t   d L_dist / d mu_k

  // Results for a batch: slots, as they are, and the others as make(sizes, options) gives them.
  template <typename Make>
  static ForwardResult allocate(const at::Tensor& embeddings, const at::Tensor& slots,
                                int64_t images, int64_t max_instances, bool squeeze,
                                const Make& make) {
    const auto numbers = embeddings.options().dtype(
        embeddings.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    const auto integers = embeddings.options().dtype(at::kLong);
    const int64_t axes = squeeze && images == 1 ? 0 : 1;
    const auto per_image = [&] { return make({&images, static_cast<size_t>(axes)}, numbers); };
    const auto table = [&] { return make({images, max_instances, embeddings.size(1)}, numbers); };
    return {per_image(),
            per_image(),
            per_image(),
            per_image(),
            slots,
            make({images}, integers),
            make({images, max_instances}, integers),
            table(),
            table(),
            table()};
  }

  ForwardTuple as_tuple() const {
    return {loss, variance, distance, regularization, slots, instances, counts, means, pull, push};
  }
};

// What forward takes.
struct ForwardInputs {
  // float32, float64, float16 or bfloat16; any strides
  const at::Tensor& embeddings;  // [B, D, *spatial]; or, with offsets, a packed batch [N_total, D]
  // bool, int8, int16, int32, int64, uint8 or uint16
  const at::Tensor& labels;                  // [B, *spatial] or [N_total]
  const std::optional<at::Tensor>& offsets;  // [B + 1] int64, 0 = offsets[0] <= ... = N_total
  c10::SymInt max_instances;                 // M; an image with more instances is an error
  Parameters parameters;
  at::IntArrayRef ignore_labels;  // ids whose pixels take part in nothing
  bool squeeze;                   // of one image, loss and terms without their axis
};

// What backward takes, as given to and returned by forward, and the upstream gradients. Returns
// dL/dembeddings, laid out as at::empty_like(embeddings).
struct BackwardInputs {
  // [B] accscalar_t ([] of one image); none counts as zero
  const std::optional<at::Tensor>& grad_loss;
  const std::optional<at::Tensor>& grad_variance;
  const std::optional<at::Tensor>& grad_distance;
  const std::optional<at::Tensor>& grad_regularization;
  const at::Tensor& embeddings;
  const std::optional<at::Tensor>& offsets;
  const at::Tensor& slots;
  const at::Tensor& instances;
  const at::Tensor& counts;
  const at::Tensor& means;
  const at::Tensor& pull;
  const at::Tensor& push;
  Parameters parameters;
};

// --- the same as flat lists: schemas, the dispatcher's function types, and the ways between ---

inline constexpr char kForwardArguments[] =
    "(Tensor embeddings, Tensor labels, Tensor? offsets, SymInt max_instances, float[] parameters, "
    "int[] ignore_labels, *, bool squeeze=False)";
inline constexpr char kForwardResults[] =
    "(Tensor loss, Tensor variance, Tensor distance, Tensor regularization, "
    "Tensor slots, Tensor instances, Tensor counts, Tensor means, Tensor pull, Tensor push)";
inline constexpr char kBackwardArguments[] =
    "(Tensor? grad_loss, Tensor? grad_variance, Tensor? grad_distance, "
    "Tensor? grad_regularization, Tensor embeddings, Tensor? offsets, Tensor slots, "
    "Tensor instances, Tensor counts, Tensor means, Tensor pull, Tensor push, float[] parameters)";

template <typename Result>
using OfForwardArguments = Result(const at::Tensor&, const at::Tensor&,
                                  const std::optional<at::Tensor>&, c10::SymInt,
                                  at::ArrayRef<double>, at::IntArrayRef, bool);
using ForwardFunction = OfForwardArguments<ForwardTuple>;

using BackwardFunction = at::Tensor(const std::optional<at::Tensor>&,
                                    const std::optional<at::Tensor>&,
                                    const std::optional<at::Tensor>&,
                                    const std::optional<at::Tensor>&, const at::Tensor&,
                                    const std::optional<at::Tensor>&, const at::Tensor&,
                                    const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                    const at::Tensor&, const at::Tensor&, at::ArrayRef<double>);

inline Parameters parameters_of(at::ArrayRef<double> numbers) {
  TORCH_CHECK_VALUE(numbers.size() == Parameters::kCount, "parameters: expected ",
                    Parameters::kCount, " numbers, got ", numbers.size());
  const double norm = numbers[Parameters::kCount - 1];  // before it becomes an integer
  TORCH_CHECK_VALUE(norm == 1 || norm == 2, "norm: expected 1 or 2, got ", norm);
  return Parameters::of(numbers.data());
}

// implementation(ForwardInputs) as a ForwardFunction, or as one with another result.
template <auto implementation>
auto flat_forward(const at::Tensor& embeddings, const at::Tensor& labels,
                  const std::optional<at::Tensor>& offsets, c10::SymInt max_instances,
                  at::ArrayRef<double> parameters, at::IntArrayRef ignore_labels, bool squeeze) {
  return implementation(ForwardInputs{embeddings, labels, offsets, std::move(max_instances),
                                      parameters_of(parameters), ignore_labels, squeeze});
}

template <typename Op>
ForwardTuple call_forward(const Op& op, const ForwardInputs& in) {
  const auto numbers = in.parameters.numbers();
  return op.call(in.embeddings, in.labels, in.offsets, in.max_instances, numbers, in.ignore_labels,
                 in.squeeze);
}

// implementation(BackwardInputs) as a BackwardFunction.
template <auto implementation>
at::Tensor flat_backward(const std::optional<at::Tensor>& grad_loss,
                         const std::optional<at::Tensor>& grad_variance,
                         const std::optional<at::Tensor>& grad_distance,
                         const std::optional<at::Tensor>& grad_regularization,
                         const at::Tensor& embeddings, const std::optional<at::Tensor>& offsets,
                         const at::Tensor& slots, const at::Tensor& instances,
                         const at::Tensor& counts, const at::Tensor& means, const at::Tensor& pull,
                         const at::Tensor& push, at::ArrayRef<double> parameters) {
  return implementation(BackwardInputs{grad_loss, grad_variance, grad_distance, grad_regularization,
                                       embeddings, offsets, slots, instances, counts, means, pull,
                                       push, parameters_of(parameters)});
}

template <typename Op>
at::Tensor call_backward(const Op& op, const BackwardInputs& in) {
  const auto numbers = in.parameters.numbers();
  return op.call(in.grad_loss, in.grad_variance, in.grad_distance, in.grad_regularization,
                 in.embeddings, in.offsets, in.slots, in.instances, in.counts, in.means, in.pull,
                 in.push, numbers);
}

// From image to image of a grad_*.
inline int64_t image_stride(const at::Tensor& gradient) {
  return gradient.dim() == 0 ? 0 : gradient.stride(0);
}

// The most instances any one image has: the smallest max_instances that forward accepts.
using CountInstancesFunction = c10::SymInt(const at::Tensor& labels,
                                           const std::optional<at::Tensor>& offsets,
                                           at::IntArrayRef ignore_labels);

// batch [N_total] int64, ascending image index of each point -> offsets [B + 1], B = batch_size
using BatchOffsetsFunction = at::Tensor(const at::Tensor& batch, int64_t batch_size);

}  // namespace discloss
