// Sums over the pixels of each instance, in an order that does not depend on the timing of threads.
//
// A tile [rows, T] is summed in two steps with a barrier between them. T is cut into segments.
//   sum_runs  A thread scans one segment of one row, several pixels a step, and replaces each value
//             by the sum of its run so far: a run is neighbouring pixels of one slot.
//   add_runs  A group of lanes adds for the slots whose last bits are its number: the sums of their
//             runs, to the accumulators of the block, a set of double, a lane a row.
// No two threads write one address between barriers, so there are no atomics and no races. The
// first row that is summed has the weights of the pixels (partials.cuh), the others are channels.
//
// A block writes its accumulators as partial sums, one set for each image it meets, and
// reduce_channels() adds those of an image in order.
//
// float sums run over at most one segment of one tile; everything above is double, so that a mean
// over 10^7 pixels is right to float rounding.
//
// Loses when M (D + 1) doubles exceed shared memory. The accumulators then are the partial sums, in
// global memory, and where all rows are summed at once only the weights are cleared beforehand:
// while that of an instance is 0, its channels are not read.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/cuda/tile.cuh"
#include "ids.cuh"
#include "partials.cuh"

namespace discloss::cuda {

// Per launch; the same on host and device.
struct SumPlan {
  TileShape tile;
  BlockRanges ranges;
  int lanes;  // of a group that has a segment, or slots: the rows, to a power of two up to a warp
  bool shared_accumulators;  // else the partial sums are the accumulators
  bool lazily_cleared;       // only their weights are
  size_t shared_bytes;
};

// Shared memory of a block that sums: [1 + tile rows][scratch][run ends][accumulators].
template <typename accscalar_t>
struct SumShared {
  accscalar_t* weights;  // [pitch], of the pixels
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
  auto* weights = reinterpret_cast<accscalar_t*>(shared);
  auto* tile = weights + plan.tile.pitch;
  auto* scratch = tile + plan.tile.channels * plan.tile.pitch;
  auto* run_ends = reinterpret_cast<int32_t*>(scratch + plan.tile.pixels);
  auto* accumulators = reinterpret_cast<double*>(run_ends + plan.tile.pixels);
  return {weights, tile, scratch, run_ends, plan.shared_accumulators ? accumulators : nullptr};
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
// the weights.
template <typename accscalar_t>
struct SummedRows {
  accscalar_t* rows;
  int count;
  int64_t first_channel;  // that row 0 is; -1: the weights
};

template <typename accscalar_t>
__device__ __forceinline__ SummedRows<accscalar_t> summed_rows(const SumShared<accscalar_t>& shared,
                                                               int64_t c, int rows) {
  return {c == 0 ? shared.weights : shared.tile, c == 0 ? 1 + rows : rows, c == 0 ? -1 : c};
}

// The first of the two steps.
template <typename accscalar_t>
__device__ inline void sum_runs(const SumPlan& plan, const int32_t* run_ends, int pixels,
                                const SummedRows<accscalar_t>& summed) {
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
                                const SummedRows<accscalar_t>& summed, const Partials& partials,
                                double* sums) {
  const int lane = threadIdx.x % 32, groups_of_warp = 32 / plan.lanes;
  const int first_row = lane % plan.lanes, group_of_warp = lane / plan.lanes;
  const int first_group = threadIdx.x / 32 * groups_of_warp;
  const int last_bits = blockDim.x / plan.lanes - 1;  // of a slot, that are its group
  for (int first = 0; first < pixels; first += 32) {
    const int32_t slot = first + lane < pixels ? run_ends[first + lane] : kIgnoredPixel;
    unsigned mine = 0;  // ends of runs that this lane's group adds
    for (int g = 0; g < groups_of_warp; ++g) {
      const unsigned of_group =
          __ballot_sync(0xffffffffu, slot >= 0 && (slot & last_bits) == first_group + g);
      mine = g == group_of_warp ? of_group : mine;
    }
    // The groups of a warp stay together, for the shuffle.
    for (; __any_sync(0xffffffffu, mine != 0); mine &= mine - 1) {
      const int at = mine != 0 ? first + __ffs(mine) - 1 : first;
      const int rows = mine != 0 ? summed.count : 0;
      const int32_t k = run_ends[at];
      // The first lane of a group alone reads and writes weights.
      const bool fresh =
          plan.lazily_cleared &&
          __shfl_sync(0xffffffffu, mine != 0 && first_row == 0 ? *partials.weight(sums, k) : 0.0, 0,
                      plan.lanes) == 0.0;
      for (int r = first_row; r < rows; r += plan.lanes) {
        const int64_t channel = summed.first_channel + r;
        double* sum = channel < 0 ? partials.weight(sums, k) : partials.row(sums, k) + channel;
        *sum = (fresh ? 0.0 : *sum) + static_cast<double>(summed.rows[r * plan.tile.pitch + at]);
      }
    }
  }
}

// Both, with the barrier between them and one behind: the tile may be overwritten at once. What is
// summed must be there, beyond a barrier.
template <typename accscalar_t>
__device__ __forceinline__ void add_tile(const SumPlan& plan, const int32_t* run_ends, int pixels,
                                         const SummedRows<accscalar_t>& summed,
                                         const Partials& partials, double* sums) {
  sum_runs(plan, run_ends, pixels, summed);
  __syncthreads();  // the tile holds the sums of runs
  add_runs(plan, run_ends, pixels, summed, partials, sums);
  __syncthreads();  // they have been added: the next tile may be loaded
}

// The accumulators of an image into the block's partial sums. A warp looks at 32 instances at once,
// of which a range of a large image has few.
__device__ inline void write_partials(double* sums, const SumPlan& plan, const Partials& partials,
                                      int64_t image) {
  if (!plan.shared_accumulators) {
    return;  // the accumulators are the partial sums
  }
  const int lane = threadIdx.x % 32;
  double* set = partials.set(blockIdx.x + image);
  for (int64_t first = threadIdx.x - lane; first < partials.max_instances; first += blockDim.x) {
    const bool is_there = first + lane < partials.max_instances;
    const double weight = is_there ? *partials.weight(sums, first + lane) : 0.0;
    if (is_there) {
      *partials.weight(set, first + lane) = weight;
    }
    for (unsigned touched = __ballot_sync(0xffffffffu, weight != 0.0); touched != 0;
         touched &= touched - 1) {
      const int64_t slot = first + __ffs(touched) - 1;
#pragma unroll 1
      for (int64_t d = lane; d < partials.channels; d += 32) {
        partials.row(set, slot)[d] = partials.row(sums, slot)[d];
      }
    }
  }
}

}  // namespace discloss::cuda
