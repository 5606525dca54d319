// Partial sums of the blocks of a pass, and their reduction in an order that does not depend on the
// timing of threads.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/strides.h"

namespace discloss::cuda {

// Partial sums [blocks + B, M (D + 1)], of which a set has what is summed for the instances of an
// image: their weights [M] (of a pixel 1 in pass 1, its squared hinge in pass 2), and behind them
// channels [M, D]. An instance of weight 0 has no sums: its channels are not written then, and not
// read. Block p and image b have set p + b: a block meets images in order, so no two pairs that
// occur have the same.
struct Partials {
  double* sets;
  Images images;
  BlockRanges ranges;
  int64_t max_instances;  // M
  int64_t channels;       // D

  __device__ __forceinline__ double* set(int64_t number) const {
    return sets + number * max_instances * (channels + 1);
  }
  __device__ __forceinline__ double* row(double* set, int64_t slot) const {
    return set + max_instances + slot * channels;
  }
  __device__ __forceinline__ double* weight(double* set, int64_t slot) const { return set + slot; }
  // The sets of an image are [first_set, last_set).
  __device__ __forceinline__ int64_t first_set(int64_t image) const {
    return images.begin(image) / ranges.pixels + image;
  }
  __device__ __forceinline__ int64_t last_set(int64_t image) const {
    const int64_t size = images.size(image);
    return size == 0 ? first_set(image)
                     : (images.begin(image) + size - 1) / ranges.pixels + image + 1;
  }
};

// Sum over a block of blockDim.x (a power of two) threads, in a fixed order, for all of them.
// `scratch` holds blockDim.x doubles and may be used again at once.
__device__ inline double block_sum(double value, double* scratch) {
  scratch[threadIdx.x] = value;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();  // the upper half's values are there
    if (threadIdx.x < half) {
      scratch[threadIdx.x] += scratch[threadIdx.x + half];
    }
  }
  __syncthreads();  // scratch[0] is complete
  const double sum = scratch[0];
  __syncthreads();  // everyone has read it: scratch is free
  return sum;
}

// The weight of an instance, added over the blocks.
__device__ inline double reduce_weight(const Partials& partials, int64_t image, int64_t slot,
                                       double* scratch) {
  double sum = 0.0;
  const int64_t last = partials.last_set(image);
  for (int64_t set = partials.first_set(image) + threadIdx.x; set < last; set += blockDim.x) {
    sum += *partials.weight(partials.set(set), slot);
  }
  return block_sum(sum, scratch);
}

// One channel of an instance, added over every step-th set of [begin, end), in order.
__device__ inline double reduce_channel(const Partials& partials, int64_t begin, int64_t end,
                                        int64_t step, int64_t slot, int64_t channel) {
  double sum = 0.0;
  constexpr int kBatch = 4;  // loads that are on their way at once
  for (; begin < end; begin += kBatch * step) {
    double values[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t set = begin + b * step;
      values[b] = set < end ? *partials.weight(partials.set(set), slot) : 0.0;
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      values[b] =
          values[b] != 0.0 ? partials.row(partials.set(begin + b * step), slot)[channel] : 0.0;
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      sum += values[b];
    }
  }
  return sum;
}

// All channels of an instance: calls write(channel, sum) once for each. A warp takes every
// blockDim.x / 32-th set, a lane one channel; the warps are added in order.
template <typename Write>
__device__ inline void reduce_channels(const Partials& partials, int64_t image, int64_t slot,
                                       double* scratch, Write write) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int64_t first_set = partials.first_set(image), last_set = partials.last_set(image);
  for (int64_t first = 0; first < partials.channels; first += 32) {
    const bool is_there = first + lane < partials.channels;
    double sum =
        is_there ? reduce_channel(partials, first_set + warp, last_set, warps, slot, first + lane)
                 : 0.0;
    scratch[threadIdx.x] = sum;
    __syncthreads();  // all warps' sums are there
    if (warp == 0 && is_there) {
      for (int other = 1; other < warps; ++other) {
        sum += scratch[other * 32 + lane];
      }
      write(first + lane, sum);
    }
    __syncthreads();  // they have been read: scratch is free
  }
}

// The same by one warp, for few blocks: the weight for all of its lanes, a channel for one.
__device__ inline double reduce_weight_in_warp(const Partials& partials, int64_t image,
                                               int64_t slot) {
  double sum = 0.0;
  const int64_t last = partials.last_set(image);
  for (int64_t set = partials.first_set(image) + threadIdx.x % 32; set < last; set += 32) {
    sum += *partials.weight(partials.set(set), slot);
  }
  return warp_sum(sum);
}
__device__ inline double reduce_channel_in_lane(const Partials& partials, int64_t image,
                                                int64_t slot, int64_t channel) {
  return reduce_channel(partials, partials.first_set(image), partials.last_set(image), 1, slot,
                        channel);
}

}  // namespace discloss::cuda
