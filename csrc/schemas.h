// The schemas of the ops, once, for every library that implements them.
#pragma once

#include <torch/library.h>

#include "check.h"

namespace discloss {

// The checks of forward by themselves, offsets on any device included, for callers that have to
// know before they meet other processes.
inline void check_arguments(const at::Tensor& embeddings, const at::Tensor& labels,
                            const std::optional<at::Tensor>& offsets, int64_t max_instances,
                            double delta_var, double delta_dist, int64_t norm) {
  check_forward(embeddings, labels, offsets, max_instances, delta_var, delta_dist, norm);
  if (offsets.has_value()) {
    const at::Tensor on_host = offsets->cpu().contiguous();
    check_offset_values(on_host.const_data_ptr<int64_t>(), on_host.numel() - 1, labels.numel());
  }
}

// Shapes and meanings of all arguments and results: discriminative_loss.h.
inline void define_schemas(torch::Library& library) {
  library.def(
      "forward(Tensor embeddings, Tensor labels, Tensor? offsets, SymInt max_instances, "
      "float delta_var, float delta_dist, float alpha, float beta, float gamma, int norm, "
      "int[] ignore_labels) -> "
      "(Tensor loss, Tensor variance, Tensor distance, Tensor regularization, "
      "Tensor slots, Tensor instances, Tensor counts, Tensor means, Tensor pull, Tensor push)");
  library.def(
      "backward(Tensor? grad_loss, Tensor? grad_variance, Tensor? grad_distance, "
      "Tensor? grad_regularization, Tensor embeddings, Tensor? offsets, Tensor slots, "
      "Tensor instances, Tensor counts, Tensor means, Tensor pull, Tensor push, "
      "float delta_var, float delta_dist, float alpha, float beta, float gamma, int norm) -> "
      "Tensor grad_embeddings");
  library.def("count_instances(Tensor labels, Tensor? offsets, int[] ignore_labels) -> SymInt");
  library.def("batch_offsets(Tensor batch, SymInt batch_size) -> Tensor");
  library.def(
      "check_forward(Tensor embeddings, Tensor labels, Tensor? offsets, int max_instances, "
      "float delta_var, float delta_dist, int norm) -> ()",
      &check_arguments);
}

}  // namespace discloss
