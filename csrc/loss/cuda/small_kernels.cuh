// Forward or backward of a small batch in one launch. The phases are those of the other kernels;
// the blocks form one cluster (sm_90 and later) and wait for each other where a larger batch has a
// launch, which takes longer than the phases of a small one. For norm 2 and anything but double.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tuning.h"
#include "forward_pass.cuh"
#include "gradient_kernels.cuh"
#include "ids.cuh"
#include "means_kernels.cuh"
#include "pull_kernels.cuh"
#include "push_kernels.cuh"
#include "terms_kernels.cuh"

namespace discloss::cuda {

// For kernels compiled for an earlier architecture. The host asks for that before it launches them.
__device__ inline void refuse_to_run() {
  device_assert(false, "discloss_cuda: compiled for an architecture without clusters of blocks\n");
}

template <typename scalar_t>
__global__ void __launch_bounds__(kPassThreads, 1)
    small_forward_kernel(IdPass ids, IgnoredIds ignored, ForwardPass<scalar_t> pass) {
  follow_previous_kernel();
  if constexpr (!kHasClusters) {
    return refuse_to_run();
  }
  const ForwardTables<float>& tables = pass.tables;
  clear_table(ids.table);
  cluster_barrier();  // the tables are empty
  if (ignored.count > 0) {
    insert_ignored(ids.table, tables.images(), ignored);
    cluster_barrier();  // the ignored ids are marked
  }
  insert_ids(ids, true);
  cluster_barrier();  // all ids are listed
  rank_ids(ids.table, tables.images(), tables.instances);
  cluster_barrier();  // they have their slots
  assign_slots(ids, pass.slots);
  __syncthreads();  // and so have the pixels of the block
  sum_pixels(pass);
  cluster_barrier();  // the partial sums are there
  reduce_means_in_warps(tables);
  cluster_barrier();  // they have been read, and the means are there
  push_instances<float, 2>(tables);
  sum_pull<scalar_t, 2>(pass);
  cluster_barrier();  // the partial sums are there
  reduce_pull_in_warps(tables);
  cluster_barrier();  // the sums of all terms are there
  DISCLOSS_DYNAMIC_SHARED(raw);
  finish_images(tables, reinterpret_cast<double*>(raw));
}

template <typename scalar_t>
__global__ void __launch_bounds__(kPassThreads, 1)
    small_backward_kernel(GradientPass<scalar_t> pass) {
  follow_previous_kernel();
  if constexpr (!kHasClusters) {
    return refuse_to_run();
  }
  instance_gradients<float, 2>(pass.tables);
  cluster_barrier();  // the tables of all instances are there
  write_gradient<scalar_t, 2>(pass);
}

}  // namespace discloss::cuda
