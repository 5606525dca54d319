// The terms of each image and its loss, from the sums over its instances (eq. 1-4):
//
//   L_var = sum_k variance_sums_k    L_dist = distance_factor(K) sum_k push_sums_k
//   L_reg = 1/K sum_k |mu_k|         L = alpha L_var + beta L_dist + gamma L_reg
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tuning.h"
#include "forward_pass.cuh"
#include "loss/loss_math.h"
#include "partials.cuh"

namespace discloss::cuda {

// Adds values [count] with all threads of a block, in a fixed order, for all of them.
template <typename T>
__device__ inline double sum_values(const T* values, int64_t count, double* scratch) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    sum += static_cast<double>(values[i]);
  }
  return block_sum(sum, scratch);
}

// Grid-stride: a block owns an image. scratch [blockDim.x]
template <typename accscalar_t>
__device__ inline void finish_images(const ForwardTables<accscalar_t>& tables, double* scratch) {
  const Terms<accscalar_t>& terms = tables.terms;
  for (int64_t image = blockIdx.x; image < tables.images(); image += gridDim.x) {
    const int64_t first = image * tables.max_instances(), count = tables.instances[image];
    const double pulled = sum_values(tables.variance_sums + first, count, scratch);
    const double pushed =
        distance_factor(count) * sum_values(tables.push_sums + first, count, scratch);
    const double norms = sum_values(tables.mean_norms + first, count, scratch);
    if (threadIdx.x == 0) {
      const double regularized = count > 0 ? norms / static_cast<double>(count) : 0.0;
      terms.variance[image] = static_cast<accscalar_t>(pulled);
      terms.distance[image] = static_cast<accscalar_t>(pushed);
      terms.regularization[image] = static_cast<accscalar_t>(regularized);
      terms.loss[image] = static_cast<accscalar_t>(terms.alpha * pulled + terms.beta * pushed +
                                                   terms.gamma * regularized);
    }
  }
}

template <typename accscalar_t>
__global__ void __launch_bounds__(kRowThreads, 4) finish_kernel(ForwardTables<accscalar_t> tables) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  finish_images(tables, reinterpret_cast<double*>(raw));
}

}  // namespace discloss::cuda
