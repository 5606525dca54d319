// The ops of a library, once, for every library that implements them: their schemas, and who
// implements them for a key.
#pragma once

#include <torch/library.h>

#include <string>

#include "clustering/check.h"
#include "clustering/clustering.h"
#include "loss/check_arguments.h"
#include "loss/discriminative_loss.h"

namespace discloss {

// Shapes and meanings of all arguments and results: discriminative_loss.h.
inline void define_schemas(torch::Library& library) {
  const std::string forward = kForwardArguments;
  library.def(("forward" + forward + " -> " + kForwardResults).c_str());
  library.def(("check_forward" + forward + " -> ()").c_str(), &flat_forward<check_forward_alone>);
  library.def(
      (std::string("backward") + kBackwardArguments + " -> Tensor grad_embeddings").c_str());
  library.def("count_instances(Tensor labels, Tensor? offsets, int[] ignore_labels) -> SymInt");
  library.def("batch_offsets(Tensor batch, SymInt batch_size) -> Tensor");
  // clustering.h
  const std::string cluster = kClusterArguments;
  library.def(("cluster" + cluster + " -> " + kClusterResults).c_str());
  library.def(("check_cluster" + cluster + " -> ()").c_str(), &flat_cluster<check_cluster>);
}

}  // namespace discloss
