// What the kernels of the forward pass are given.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "partials.cuh"
#include "sums.cuh"

namespace discloss::cuda {

// What an image's terms are put together with.
template <typename accscalar_t>
struct Terms {
  double alpha;
  double beta;
  double gamma;
  accscalar_t* loss;            // [B]
  accscalar_t* variance;        // [B]
  accscalar_t* distance;        // [B]
  accscalar_t* regularization;  // [B]
};

// What does not depend on the dtype of the embeddings: all that is known of instances and images.
template <typename accscalar_t>
struct ForwardTables {
  Partials partials;
  int64_t* instances;       // [B]
  int64_t* counts;          // [B, M]
  accscalar_t* means;       // [B, M, D]
  accscalar_t* mean_norms;  // [B, M] |mu_k|
  accscalar_t* pull;        // [B, M, D]
  accscalar_t* push;        // [B, M, D]
  double* variance_sums;    // [B, M] parts of L_var
  double* push_sums;        // [B, M] squared hinges
  double delta_dist;
  Terms<accscalar_t> terms;

  __host__ __device__ int64_t images() const { return partials.images.count; }
  __host__ __device__ int64_t max_instances() const { return partials.max_instances; }
  __host__ __device__ int64_t channels() const { return partials.channels; }
  __host__ __device__ int64_t rows() const { return images() * max_instances(); }
};

// From slots to terms.
template <typename scalar_t, typename accscalar_t = typename Accumulate<scalar_t>::type>
struct ForwardPass {
  SumPlan plan;
  Global<const scalar_t*> embeddings;
  int32_t* slots;  // [pixels]
  double delta_var;
  ForwardTables<accscalar_t> tables;
};

}  // namespace discloss::cuda
