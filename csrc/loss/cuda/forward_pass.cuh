// What the kernels of the forward pass are given.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "launch.h"
#include "push_kernels.cuh"
#include "sums.cuh"

namespace discloss::cuda {

// From slots to terms.
template <typename scalar_t, typename accscalar_t = typename Accumulate<scalar_t>::type>
struct ForwardPass {
  SumPlan plan;
  Global<const scalar_t*> embeddings;
  Partials partials;
  int32_t* slots;           // [pixels]
  int64_t* instances;       // [B]
  int64_t* counts;          // [B, M]
  accscalar_t* means;       // [B, M, D]
  accscalar_t* mean_norms;  // [B, M]
  accscalar_t* pull;        // [B, M, D]
  accscalar_t* push;        // [B, M, D]
  double* variance_sums;    // [B, M]
  double* push_sums;        // [B, M]
  double delta_var;
  double delta_dist;
  Terms<accscalar_t> terms;

  __host__ __device__ int64_t rows() const {
    return partials.images.count * partials.max_instances;
  }
  __host__ __device__ TermSums<accscalar_t> term_sums() const {
    return {variance_sums, push_sums, mean_norms};
  }
};

}  // namespace discloss::cuda
