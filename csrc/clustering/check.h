// The checks of the op `cluster`, once, before the device split.
#pragma once

#include "clustering.h"
#include "common/check.h"

namespace discloss {

inline void check_foreground_dtype(const at::Tensor& foreground) {
  const auto dtype = foreground.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kBool || dtype == at::kChar || dtype == at::kShort || dtype == at::kInt ||
          dtype == at::kLong || dtype == at::kByte || dtype == at::kUInt16,
      "foreground: expected a tensor of dtype bool, or classes of dtype int8, int16, "
      "int32, int64, uint8 or uint16, got ",
      dtype, at::isFloatingType(dtype) ? ": foreground > 0 makes a mask of logits" : "");
}

inline void check_foreground(const at::Tensor& foreground, const at::Tensor& embeddings,
                             bool packed) {
  check_foreground_dtype(foreground);
  check_same_device("foreground", foreground, "embeddings", embeddings);
  auto expected = embeddings.sizes().vec();
  expected.erase(expected.begin() + 1);
  TORCH_CHECK_VALUE(foreground.sizes() == at::IntArrayRef(expected), "foreground: expected shape ",
                    packed ? "[N_total] = " : "[B, *spatial] = ", at::IntArrayRef(expected),
                    " for embeddings of shape ", embeddings.sizes(), ", got ", foreground.sizes());
}

inline void check_given_modes(const at::Tensor& modes, const at::Tensor& embeddings,
                              int64_t images) {
  TORCH_CHECK_TYPE(at::isFloatingType(modes.scalar_type()),
                   "modes: expected a tensor of a floating dtype, got ", modes.scalar_type());
  check_same_device("modes", modes, "embeddings", embeddings);
  TORCH_CHECK_VALUE(
      modes.dim() == 3 && modes.size(0) == images && modes.size(2) == embeddings.size(1),
      "modes: expected shape [B, G, D] = [", images, ", G, ", embeddings.size(1), "], got ",
      modes.sizes());
}

inline void check_cluster_numbers(const ClusterOptions& options) {
  const double v = options.delta_var, d = options.delta_dist;
  TORCH_CHECK_VALUE(v >= kLeastMargin, "delta_var: expected a number >= ", kLeastMargin, ", got ",
                    v);
  TORCH_CHECK_VALUE(d >= kNear * v, "delta_dist: expected a number >= ", kNear,
                    " delta_var = ", kNear * v, ", got ", d);
  TORCH_CHECK_VALUE(d <= kMostMargin, "delta_dist: expected a number <= ", kMostMargin, ", got ",
                    d);
  TORCH_CHECK_VALUE(options.min_size >= 1, "min_size: expected a number >= 1, got ",
                    options.min_size);
  TORCH_CHECK_VALUE(options.sample >= 1 && options.sample <= kMostSampled,
                    "sample: expected a number from 1 to ", kMostSampled, ", got ", options.sample);
  TORCH_CHECK_VALUE(options.max_clusters >= 1 && options.max_clusters <= INT32_MAX,
                    "max_clusters: expected a number from 1 to ", INT32_MAX, ", got ",
                    options.max_clusters);
  TORCH_CHECK_VALUE(options.fragment >= 0, "fragment: expected a number >= 0, got ",
                    options.fragment);
}

inline void check_packed_embeddings(const at::Tensor& embeddings, const at::Tensor& offsets,
                                    const ClusterOptions& options) {
  TORCH_CHECK_VALUE(embeddings.dim() == 2,
                    "embeddings: expected shape [N_total, D] with offsets, got ",
                    embeddings.sizes());
  check_int64_vector("offsets", offsets);
  TORCH_CHECK_VALUE(offsets.numel() >= 1, "offsets: expected shape [B + 1], got ", offsets.sizes());
  check_same_device("offsets", offsets, "embeddings", embeddings);
  TORCH_CHECK_VALUE(options.fragment == 0 && !options.connected,
                    "fragment, connected: expected 0 and False with offsets, as points have no "
                    "grid, got ",
                    options.fragment, " and ", options.connected ? "True" : "False");
}

inline void check_cluster(const ClusterInputs& in) {
  check_embeddings_dtype(in.embeddings);
  if (in.offsets.has_value()) {
    check_packed_embeddings(in.embeddings, *in.offsets, in.options);
  } else {
    TORCH_CHECK_VALUE(in.embeddings.dim() >= 3,
                      "embeddings: expected shape [B, D, *spatial] with at least one spatial "
                      "axis, got ",
                      in.embeddings.sizes());
  }
  TORCH_CHECK_VALUE(in.embeddings.size(1) >= 1, "embeddings: expected at least one channel, got ",
                    in.embeddings.sizes());
  if (in.foreground.has_value()) {
    check_foreground(*in.foreground, in.embeddings, in.offsets.has_value());
  }
  if (in.modes.has_value()) {
    check_given_modes(*in.modes, in.embeddings,
                      in.offsets.has_value() ? in.offsets->numel() - 1 : in.embeddings.size(0));
  }
  check_cluster_numbers(in.options);
}

}  // namespace discloss
