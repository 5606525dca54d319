// The forward pass of a small batch in one launch. Its phases are those of the other kernels; the
// blocks form one cluster (sm_90 and later) and wait for each other where a larger batch has a
// launch, which takes longer than the phases of a small one. For norm 2 and anything but double.
#pragma once

#include "../loss_math.h"
#include "ids_kernels.cuh"
#include "launch.h"
#include "means_kernels.cuh"
#include "portability.cuh"
#include "pull_kernels.cuh"
#include "push_kernels.cuh"
#include "sums.cuh"
#include "tile.cuh"

namespace discloss::cuda {

constexpr int kClusterBlocks = 8;  // the largest that all cards of sm_90 and later have

// What the forward pass works on, from slots to terms.
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
__device__ inline void reduce_means_in_warps(const ForwardPass<scalar_t>& a) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const Partials& partials = a.partials;
  for (int64_t row = first_warp(); row < a.rows(); row += all_warps()) {
    const int64_t image = row / partials.max_instances, slot = row % partials.max_instances;
    const double count = reduce_own_in_warp(partials, image, slot);
    accscalar_t norm = 0;
    for (int64_t d = threadIdx.x % 32; d < partials.channels; d += 32) {
      const accscalar_t value =
          mean_of<accscalar_t>(count, reduce_channel(partials, partials.first_set(image),
                                                     partials.last_set(image), 1, slot, d));
      a.means[row * partials.channels + d] = value;
      norm = Norm<2>::accumulate(norm, value);
    }
    norm = warp_sum(norm);
    if (threadIdx.x % 32 == 0) {
      a.counts[row] = static_cast<int64_t>(count);
      a.mean_norms[row] = Norm<2>::finish(norm);
    }
  }
}

template <typename scalar_t>
__device__ inline void reduce_pull_in_warps(const ForwardPass<scalar_t>& a) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const Partials& partials = a.partials;
  for (int64_t row = first_warp(); row < a.rows(); row += all_warps()) {
    const int64_t image = row / partials.max_instances, slot = row % partials.max_instances;
    const int64_t instances = a.instances[image], count = a.counts[row];
    const double squares = reduce_own_in_warp(partials, image, slot);
    for (int64_t d = threadIdx.x % 32; d < partials.channels; d += 32) {
      a.pull[row * partials.channels + d] =
          pull_of<accscalar_t>(instances, count,
                               reduce_channel(partials, partials.first_set(image),
                                              partials.last_set(image), 1, slot, d));
    }
    if (threadIdx.x % 32 == 0) {
      a.variance_sums[row] = variance_of(instances, count, squares);
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
__global__ void __launch_bounds__(kPassThreads)
    small_forward_kernel(IdTable table, int64_t words, IgnoredIds ignored, Labels labels,
                         ForwardPass<scalar_t> a) {
  follow_previous_kernel();
  if constexpr (!kHasClusters) {
    return;
  }
  const Partials& partials = a.partials;
  const Images& images = partials.images;
  clear_table(table, words);
  cluster_barrier();  // the tables are empty
  insert_ignored(table, images.count, ignored);
  cluster_barrier();  // the ignored ids are marked
  insert_ids(table, images, partials.shares, labels, true);
  cluster_barrier();  // all ids are listed
  rank_ids(table, images.count, a.instances);
  cluster_barrier();  // they have their slots
  assign_slots(table, images, partials.shares, labels, a.slots);
  __syncthreads();  // and so have the pixels of the block
  sum_pixels<scalar_t>(a.plan, partials.channels, a.embeddings, a.slots, partials);
  cluster_barrier();  // the partial sums are there
  reduce_means_in_warps(a);
  cluster_barrier();  // they have been read, and the means are there
  push_instances<float, 2>(images.count, partials.max_instances, partials.channels, a.instances,
                           a.means, a.delta_dist, a.push, a.push_sums);
  sum_pull<scalar_t, 2>(a.plan, partials.channels, a.embeddings, a.slots, a.means, a.delta_var,
                        partials);
  cluster_barrier();  // the partial sums are there
  reduce_pull_in_warps(a);
  cluster_barrier();  // the sums of all terms are there
  DISCLOSS_DYNAMIC_SHARED(raw);
  finish_images(a.term_sums(), images.count, partials.max_instances, a.instances, a.terms,
                reinterpret_cast<double*>(raw));
}

}  // namespace discloss::cuda
