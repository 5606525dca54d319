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

#include <cstdint>
#include <optional>
#include <tuple>

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

// embeddings  [B, D, *spatial], any strides; or, with offsets, a packed batch [N_total, D]
//             float32, float64, float16 or bfloat16
// labels      [B, *spatial] or [N_total]; bool, int8, int16, int32, int64, uint8 or uint16
// offsets     [B + 1] int64, 0 = offsets[0] <= ... <= offsets[B] = N_total; or none
// max_instances  M; an image with more instances is an error
// ignore_labels  ids whose pixels take part in nothing
// squeeze        of one image, loss and terms without their axis
using ForwardFunction = ForwardTuple(const at::Tensor& embeddings, const at::Tensor& labels,
                                     const std::optional<at::Tensor>& offsets,
                                     int64_t max_instances, double delta_var, double delta_dist,
                                     double alpha, double beta, double gamma, int64_t norm,
                                     at::IntArrayRef ignore_labels, bool squeeze);

// grad_*      [B] accscalar_t ([] of one image), the upstream gradient of each result; none counts
//             as zero
// the rest    as given to and returned by forward
// returns     dL/dembeddings, laid out as at::empty_like(embeddings)
using BackwardFunction = at::Tensor(
    const std::optional<at::Tensor>& grad_loss, const std::optional<at::Tensor>& grad_variance,
    const std::optional<at::Tensor>& grad_distance,
    const std::optional<at::Tensor>& grad_regularization, const at::Tensor& embeddings,
    const std::optional<at::Tensor>& offsets, const at::Tensor& slots, const at::Tensor& instances,
    const at::Tensor& counts, const at::Tensor& means, const at::Tensor& pull,
    const at::Tensor& push, double delta_var, double delta_dist, double alpha, double beta,
    double gamma, int64_t norm);

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
