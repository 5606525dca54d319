// Every check of the loss's arguments that needs their tensors, once, before the device split. What
// is no tensor is checked in Python before (discloss_cuda/_check_arguments.py).
#pragma once

#include <cmath>
#include <cstdint>

#include "common/check.h"
#include "discriminative_loss.h"

namespace discloss {

inline void check_number(const char* name, double number, bool negative_too) {
  TORCH_CHECK_VALUE(std::isfinite(number), name, ": expected a finite number, got ", number);
  TORCH_CHECK_VALUE(negative_too || number >= 0, name, ": expected a number >= 0, got ", number);
}

inline void check_parameters(const Parameters& p) {
  check_number("delta_var", p.delta_var, false);
  check_number("delta_dist", p.delta_dist, false);
  check_number("alpha", p.alpha, true);
  check_number("beta", p.beta, true);
  check_number("gamma", p.gamma, true);
}

inline void check_forward(const ForwardInputs& in) {
  check_embeddings_dtype(in.embeddings);
  check_labels_dtype(in.labels);
  check_same_device("labels", in.labels, "embeddings", in.embeddings);
  if (in.offsets.has_value()) {
    check_packed_shapes(in.embeddings, in.labels);
    check_packed_labels(in.labels, *in.offsets);
  } else {
    check_dense_shapes(in.embeddings, in.labels);
  }
  TORCH_CHECK_VALUE(in.embeddings.size(1) >= 1, "embeddings: expected at least one channel, got ",
                    in.embeddings.sizes());
  const int64_t max_instances = in.max_instances.expect_int();
  TORCH_CHECK_VALUE(max_instances >= 0 && max_instances <= INT32_MAX,
                    "max_instances: expected a number from 0 to ", INT32_MAX, ", got ",
                    max_instances);
  check_parameters(in.parameters);
}

// The checks of forward by themselves, offsets on any device included, for callers that have to
// know before they meet other processes.
inline void check_forward_alone(const ForwardInputs& in) {
  check_forward(in);
  if (in.offsets.has_value()) {
    const at::Tensor on_host = in.offsets->cpu().contiguous();
    check_offset_values(on_host.const_data_ptr<int64_t>(), on_host.numel() - 1, in.labels.numel());
  }
}

// What backward got is what forward returned; only a direct call of the op can break this.
inline void check_backward(const BackwardInputs& in) {
  check_embeddings_dtype(in.embeddings);
  const auto accumulate = in.embeddings.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t images = in.instances.numel();
  for (const auto* gradient :
       {&in.grad_loss, &in.grad_variance, &in.grad_distance, &in.grad_regularization}) {
    if (gradient->has_value()) {
      check_same_device("grad", **gradient, "embeddings", in.embeddings);
      TORCH_CHECK_TYPE((*gradient)->scalar_type() == accumulate, "grad: expected dtype ",
                       accumulate, ", got ", (*gradient)->scalar_type());
      TORCH_CHECK_VALUE((*gradient)->dim() <= 1 && (*gradient)->numel() == images,
                        "grad: expected shape ", in.instances.sizes(), ", got ",
                        (*gradient)->sizes());
    }
  }
  TORCH_CHECK_TYPE(
      in.slots.scalar_type() == at::kInt && in.instances.scalar_type() == at::kLong &&
          in.counts.scalar_type() == at::kLong && in.means.scalar_type() == accumulate &&
          in.pull.scalar_type() == accumulate && in.push.scalar_type() == accumulate,
      "slots, instances, counts, means, pull, push: expected the dtypes that forward returns");
  TORCH_CHECK_VALUE(
      in.counts.dim() == 2 && in.counts.size(0) == images && in.means.dim() == 3 &&
          in.means.size(0) == images && in.means.size(1) == in.counts.size(1) &&
          in.means.size(2) == in.embeddings.size(1) && in.pull.sizes() == in.means.sizes() &&
          in.push.sizes() == in.means.sizes() &&
          in.slots.numel() * in.embeddings.size(1) == in.embeddings.numel() &&
          in.slots.is_contiguous() && in.instances.is_contiguous() && in.counts.is_contiguous() &&
          in.means.is_contiguous() && in.pull.is_contiguous() && in.push.is_contiguous(),
      "slots, instances, counts, means, pull, push: expected the shapes and layout that forward "
      "returns");
}

}  // namespace discloss
