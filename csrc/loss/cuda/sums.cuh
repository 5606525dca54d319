// Sums over the pixels of each instance, in an order that does not depend on thread timing.
//
// A tile [rows, T] is summed in two steps with a barrier between them. T is cut into segments.
//   sum_runs  A thread walks one segment of one row, several pixels a step, and replaces each value
//             by the sum of its run so far: a run is neighbouring pixels of one slot.
//   add_runs  A group of lanes owns the slots whose last bits are its number. It adds the sums of
//             their runs to the accumulators of the block, a set of double, a lane a row.
// No two threads write one address between barriers, so there are no atomics and no races. The
// first row that is summed is a quantity of the pixel itself (1 for means, the squared hinge for
// pull), the others are channels.
//
// A block writes its accumulators as partial sums, one set for each image it meets, and
// reduce_channels() adds those of an image in order.
//
// float sums run over at most one segment of one tile; everything above is double, so that a mean
// over 10^7 pixels is right to float rounding.
//
// Loses when M (D + 1) doubles exceed shared memory. The accumulators then are the partial sums, in
// global memory, and where all rows are summed at once only the pixels' own sums are cleared
// beforehand: while that of an instance is 0, its channels are not read.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/cuda/tile.cuh"
#include "ids_kernels.cuh"
#include "launch.h"

namespace discloss::cuda {

// Per launch; the same on host and device.
struct SumPlan {
  TileShape tile;
  BlockRanges ranges;
  int lanes;  // of a group that has a segment, or slots: the rows, to a power of two up to a warp
  bool shared_accumulators;  // else the partial sums are the accumulators
  bool lazily_cleared;       // only the pixels' own sums are
  size_t shared_bytes;
};

// Partial sums [blocks + B, M (D + 1)], of which a set has what is summed for the instances of an
// image: the pixels' own quantity [M], and behind it channels [M, D]. An instance whose own sum is
// 0 has no sums: its channels are not written then, and not read. Block p and image b have set p +
// b: a block meets images in order, so no two pairs that occur have the same.
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
  __device__ __forceinline__ double* own(double* set, int64_t slot) const { return set + slot; }
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

// Shared memory of a block that sums: [1 + tile rows][scratch][run ends][accumulators].
template <typename accscalar_t>
struct SumShared {
  accscalar_t* own;      // [pitch], the pixel's own quantity
  accscalar_t* tile;     // [channels, pitch], directly behind it
  accscalar_t* scratch;  // [T]
  int32_t* run_ends;     // [T]
  double* accumulators;  // a set of sums, or null
};

template <typename accscalar_t>
__host__ __device__ inline size_t sum_shared_bytes(const TileShape& tile, int64_t accumulators) {
  return (static_cast<size_t>(tile.channels + 1) * tile.pitch + tile.pixels) * sizeof(accscalar_t) +
         tile.pixels * sizeof(int32_t) + accumulators * sizeof(double);
}

template <typename accscalar_t>
__device__ __forceinline__ SumShared<accscalar_t> carve_sum_shared(unsigned char* shared,
                                                                   const SumPlan& plan) {
  auto* own = reinterpret_cast<accscalar_t*>(shared);
  auto* tile = own + plan.tile.pitch;
  auto* scratch = tile + plan.tile.channels * plan.tile.pitch;
  auto* run_ends = reinterpret_cast<int32_t*>(scratch + plan.tile.pixels);
  auto* accumulators = reinterpret_cast<double*>(run_ends + plan.tile.pixels);
  return {own, tile, scratch, run_ends, plan.shared_accumulators ? accumulators : nullptr};
}

// Sets the accumulators of a block for one image to 0 and returns them.
__device__ inline double* clear_accumulators(double* shared, const SumPlan& plan,
                                             const Partials& partials, int64_t image) {
  double* sums = shared != nullptr ? shared : partials.set(blockIdx.x + image);
  const int64_t count = partials.max_instances * (plan.lazily_cleared ? 1 : partials.channels + 1);
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    sums[i] = 0.0;
  }
  return sums;
}

constexpr int32_t kInsideRun = kIgnoredPixel - 1;  // of a pixel before the last of its run

__device__ __forceinline__ int pixels_of_segment(const SumPlan& plan) {
  return plan.tile.pixels / (blockDim.x / plan.lanes);
}

// run_ends [T] = the slot of the last pixel of each run. A run ends with its segment.
__device__ inline void find_run_ends(const SumPlan& plan, const int32_t* slots, int pixels,
                                     int32_t* run_ends) {
  const int segment = pixels_of_segment(plan);
  for (int i = threadIdx.x; i < plan.tile.pixels; i += blockDim.x) {
    const int32_t slot = i < pixels ? slots[i] : kIgnoredPixel;
    const bool inside =
        ((i + 1) & (segment - 1)) != 0 && slot == (i + 1 < pixels ? slots[i + 1] : kIgnoredPixel);
    run_ends[i] = inside ? kInsideRun : slot;
  }
}

// The rows that are summed at a time: of a chunk of channels, and before those of the first chunk
// the pixels' own quantity.
template <typename accscalar_t>
struct Summed {
  accscalar_t* rows;
  int count;
  int64_t first_channel;  // that row 0 is; -1: the own quantity
};

template <typename accscalar_t>
__device__ __forceinline__ Summed<accscalar_t> summed_rows(const SumShared<accscalar_t>& shared,
                                                           int64_t c, int rows) {
  return {c == 0 ? shared.own : shared.tile, c == 0 ? 1 + rows : rows, c == 0 ? -1 : c};
}

// The first of the two steps.
template <typename accscalar_t>
__device__ inline void sum_runs(const SumPlan& plan, const int32_t* run_ends, int pixels,
                                const Summed<accscalar_t>& summed) {
  using Values = Vector<accscalar_t>;
  using Ends = Vector<int32_t, Values::kSize>;
  const int segment = pixels_of_segment(plan);
  const int begin = threadIdx.x / plan.lanes * segment;
  const int end = begin + segment < pixels ? begin + segment : pixels;
  for (int r = threadIdx.x % plan.lanes; r < summed.count; r += plan.lanes) {
    accscalar_t* row = summed.rows + r * plan.tile.pitch;
    accscalar_t sum = 0;
    bool ended = true;
    for (int i = begin; i < end; i += Values::kSize) {
      Values values = load_vector<Values>(row + i);
      const Ends ends = load_vector<Ends>(run_ends + i);
#pragma unroll
      for (int e = 0; e < Values::kSize; ++e) {
        sum = ended ? values.values[e] : sum + values.values[e];
        values.values[e] = sum;
        ended = ends.values[e] != kInsideRun;
      }
      store_vector(row + i, values);
    }
  }
}

// The second. Ignored runs are left out.
template <typename accscalar_t>
__device__ inline void add_runs(const SumPlan& plan, const int32_t* run_ends, int pixels,
                                const Summed<accscalar_t>& summed, const Partials& partials,
                                double* sums) {
  const int lane = threadIdx.x % 32, groups_of_warp = 32 / plan.lanes;
  const int first_row = lane % plan.lanes, group_of_warp = lane / plan.lanes;
  const int first_group = threadIdx.x / 32 * groups_of_warp;
  const int last_bits = blockDim.x / plan.lanes - 1;  // of a slot, that are its group
  for (int first = 0; first < pixels; first += 32) {
    const int32_t slot = first + lane < pixels ? run_ends[first + lane] : kIgnoredPixel;
    unsigned own = 0;
    for (int g = 0; g < groups_of_warp; ++g) {
      const unsigned of_group =
          __ballot_sync(0xffffffffu, slot >= 0 && (slot & last_bits) == first_group + g);
      own = g == group_of_warp ? of_group : own;
    }
    // The groups of a warp stay together, for the shuffle.
    for (; __any_sync(0xffffffffu, own != 0); own &= own - 1) {
      const int at = own != 0 ? first + __ffs(own) - 1 : first;
      const int rows = own != 0 ? summed.count : 0;
      const int32_t k = run_ends[at];
      // The first lane of a group alone reads and writes own sums.
      const bool fresh =
          plan.lazily_cleared &&
          __shfl_sync(0xffffffffu, own != 0 && first_row == 0 ? *partials.own(sums, k) : 0.0, 0,
                      plan.lanes) == 0.0;
      for (int r = first_row; r < rows; r += plan.lanes) {
        const int64_t channel = summed.first_channel + r;
        double* sum = channel < 0 ? partials.own(sums, k) : partials.row(sums, k) + channel;
        *sum = (fresh ? 0.0 : *sum) + static_cast<double>(summed.rows[r * plan.tile.pitch + at]);
      }
    }
  }
}

// Both, with the barrier between them and one behind: the tile may be overwritten at once. What is
// summed must be there, beyond a barrier.
template <typename accscalar_t>
__device__ __forceinline__ void add_tile(const SumPlan& plan, const int32_t* run_ends, int pixels,
                                         const Summed<accscalar_t>& summed,
                                         const Partials& partials, double* sums) {
  sum_runs(plan, run_ends, pixels, summed);
  __syncthreads();  // the tile holds the sums of runs
  add_runs(plan, run_ends, pixels, summed, partials, sums);
  __syncthreads();  // they have been added: the next tile may be loaded
}

// The accumulators of an image into the block's partial sums. A warp looks at 32 instances at once,
// of which a share of a large image has few.
__device__ inline void write_partials(double* sums, const SumPlan& plan, const Partials& partials,
                                      int64_t image) {
  if (!plan.shared_accumulators) {
    return;  // the accumulators are the partial sums
  }
  const int lane = threadIdx.x % 32;
  double* set = partials.set(blockIdx.x + image);
  for (int64_t first = threadIdx.x - lane; first < partials.max_instances; first += blockDim.x) {
    const bool is_there = first + lane < partials.max_instances;
    const double own = is_there ? *partials.own(sums, first + lane) : 0.0;
    if (is_there) {
      *partials.own(set, first + lane) = own;
    }
    for (unsigned touched = __ballot_sync(0xffffffffu, own != 0.0); touched != 0;
         touched &= touched - 1) {
      const int64_t slot = first + __ffs(touched) - 1;
#pragma unroll 1
      for (int64_t d = lane; d < partials.channels; d += 32) {
        partials.row(set, slot)[d] = partials.row(sums, slot)[d];
      }
    }
  }
}

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

// The own sum of an instance, added over the blocks.
__device__ inline double reduce_own(const Partials& partials, int64_t image, int64_t slot,
                                    double* scratch) {
  double sum = 0.0;
  const int64_t last = partials.last_set(image);
  for (int64_t set = partials.first_set(image) + threadIdx.x; set < last; set += blockDim.x) {
    sum += *partials.own(partials.set(set), slot);
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
      values[b] = set < end ? *partials.own(partials.set(set), slot) : 0.0;
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

}  // namespace discloss::cuda
