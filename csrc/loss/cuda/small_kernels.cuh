// Forward or backward of a small batch in one launch. The phases are those of the other kernels;
// the blocks form one cluster (sm_90 and later) and wait for each other where a larger batch has a
// launch, which takes longer than the phases of a small one. For norm 2 and anything but double.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "forward_pass.cuh"
#include "gradient_kernels.cuh"
#include "ids_kernels.cuh"
#include "launch.h"
#include "loss/loss_math.h"
#include "means_kernels.cuh"
#include "pull_kernels.cuh"
#include "push_kernels.cuh"
#include "sums.cuh"

namespace discloss::cuda {

// For kernels compiled for an earlier architecture. The host asks for that before it launches them.
__device__ inline void refuse_to_run() {
  device_assert(false, "discloss_cuda: compiled for an architecture without clusters of blocks\n");
}

// --- what few blocks do with their partial sums: a warp an instance, then the next ---------------

__device__ inline double reduce_own_in_warp(const Partials& partials, int64_t image, int64_t slot) {
  double sum = 0.0;
  const int64_t last = partials.last_set(image);
  for (int64_t set = partials.first_set(image) + threadIdx.x % 32; set < last; set += 32) {
    sum += *partials.own(partials.set(set), slot);
  }
  return warp_sum(sum);
}

template <typename scalar_t>
__device__ inline void reduce_means_in_warps(const ForwardPass<scalar_t>& pass) {
  const Partials& partials = pass.partials;
  for (int64_t row = first_warp(); row < pass.rows(); row += all_warps()) {
    const int64_t image = row / partials.max_instances, slot = row % partials.max_instances;
    const double count = reduce_own_in_warp(partials, image, slot);
    float norm = 0;
    for (int64_t d = threadIdx.x % 32; d < partials.channels; d += 32) {
      const float value =
          mean_of<float>(count, reduce_channel(partials, partials.first_set(image),
                                               partials.last_set(image), 1, slot, d));
      pass.means[row * partials.channels + d] = value;
      norm = Norm<2>::accumulate(norm, value);
    }
    norm = warp_sum(norm);
    if (threadIdx.x % 32 == 0) {
      pass.counts[row] = static_cast<int64_t>(count);
      pass.mean_norms[row] = Norm<2>::finish(norm);
    }
  }
}

template <typename scalar_t>
__device__ inline void reduce_pull_in_warps(const ForwardPass<scalar_t>& pass) {
  const Partials& partials = pass.partials;
  for (int64_t row = first_warp(); row < pass.rows(); row += all_warps()) {
    const int64_t image = row / partials.max_instances, slot = row % partials.max_instances;
    const int64_t instances = pass.instances[image], count = pass.counts[row];
    const double squares = reduce_own_in_warp(partials, image, slot);
    for (int64_t d = threadIdx.x % 32; d < partials.channels; d += 32) {
      pass.pull[row * partials.channels + d] =
          pull_of<float>(instances, count,
                         reduce_channel(partials, partials.first_set(image),
                                        partials.last_set(image), 1, slot, d));
    }
    if (threadIdx.x % 32 == 0) {
      pass.variance_sums[row] = variance_of(instances, count, squares);
    }
  }
}

// --- the phases ----------------------------------------------------------------------------------

// words: of 4 bytes, that the table begins with and that are to be 0xFF
__device__ inline void clear_table(const IdTable& table, int64_t words) {
  auto* memory = reinterpret_cast<int32_t*>(table.keys);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words;
       i += step) {
    memory[i] = -1;
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kPassThreads, 1)
    small_forward_kernel(IdTable table, int64_t words, IgnoredIds ignored, Labels labels,
                         ForwardPass<scalar_t> pass) {
  follow_previous_kernel();
  if constexpr (!kHasClusters) {
    return refuse_to_run();
  }
  const Partials& partials = pass.partials;
  const Images& images = partials.images;
  clear_table(table, words);
  cluster_barrier();  // the tables are empty
  if (ignored.count > 0) {
    insert_ignored(table, images.count, ignored);
    cluster_barrier();  // the ignored ids are marked
  }
  insert_ids(table, images, partials.ranges, labels, true);
  cluster_barrier();  // all ids are listed
  rank_ids(table, images.count, pass.instances);
  cluster_barrier();  // they have their slots
  assign_slots(table, images, partials.ranges, labels, pass.slots);
  __syncthreads();  // and so have the pixels of the block
  sum_pixels<scalar_t>(pass.plan, partials.channels, pass.embeddings, pass.slots, partials);
  cluster_barrier();  // the partial sums are there
  reduce_means_in_warps(pass);
  cluster_barrier();  // they have been read, and the means are there
  push_instances<float, 2>(images.count, partials.max_instances, partials.channels, pass.instances,
                           pass.means, pass.delta_dist, pass.push, pass.push_sums);
  sum_pull<scalar_t, 2>(pass.plan, partials.channels, pass.embeddings, pass.slots, pass.means,
                        pass.delta_var, partials);
  cluster_barrier();  // the partial sums are there
  reduce_pull_in_warps(pass);
  cluster_barrier();  // the sums of all terms are there
  DISCLOSS_DYNAMIC_SHARED(raw);
  finish_images(pass.term_sums(), images.count, partials.max_instances, pass.instances, pass.terms,
                reinterpret_cast<double*>(raw));
}

template <typename scalar_t>
__global__ void __launch_bounds__(kPassThreads, 1)
    small_backward_kernel(Instances<float> instances, Weights weights, Upstreams upstreams,
                          float* factors, float* shared_gradients, GradientPass<scalar_t> pass) {
  follow_previous_kernel();
  if constexpr (!kHasClusters) {
    return refuse_to_run();
  }
  instance_gradients<float, 2>(instances, pass.images.count, weights, upstreams, factors,
                               shared_gradients);
  cluster_barrier();  // the tables of all instances are there
  write_gradient<scalar_t, 2>(pass);
}

}  // namespace discloss::cuda
