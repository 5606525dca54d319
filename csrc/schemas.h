// The schemas of the ops, once, for every library that implements them.
#pragma once

#include <torch/library.h>

#include "common/check.h"

namespace discloss {

// Shapes and meanings of all arguments and results: discriminative_loss.h.
inline void define_schemas(torch::Library& library) {
  library.def(
      "forward(Tensor embeddings, Tensor labels, Tensor? offsets, SymInt max_instances, "
      "float delta_var, float delta_dist, float alpha, float beta, float gamma, int norm, "
      "int[] ignore_labels, *, bool squeeze=False) -> "
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
