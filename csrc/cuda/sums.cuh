// Sums over the pixels of each instance, in an order that does not depend on thread timing.
//
// A block holds `groups` private accumulators, [M][D + 1] doubles each. Thread (group g, column c)
// walks the pixels of segment g of a tile along row c, adds in a register while the slot stays the
// same, and adds the register to its own accumulator when the slot changes: no two threads share an
// address, so there are no atomics and no races. The last column, D, is a quantity of the pixel
// itself (1 for means, the squared hinge for pull). At the end the groups are added in order into
// one partial row per block and instance, and reduce_row() adds the blocks' rows in order.
//
// float sums run over at most one segment of one tile; everything above is double, so that a mean
// over 10^7 pixels is right to float rounding.
//
// Loses when ids change from pixel to pixel (every pixel pays a flush) and when M (D + 1) doubles
// exceed shared memory (accumulators then lie in the partial rows in global memory).
#pragma once

#include "launch.h"
#include "portability.cuh"
#include "tile.cuh"

namespace discloss::cuda {

// Per launch; the same on host and device.
struct SumPlan {
  TileShape tile;
  int groups;
  bool shared_accumulators;  // else groups = 1 and the partial row is the accumulator
  int64_t blocks_per_image;
  size_t shared_bytes;
};

// [B, blocks_per_image, M, D + 1]; a row whose last column is 0 is 0 and not written further.
struct Partials {
  double* rows;
  int64_t blocks_per_image;
  int64_t max_instances;
  int64_t columns;  // D + 1

  __device__ __forceinline__ double* row(int64_t image, int64_t part, int64_t slot) const {
    return rows + ((image * blocks_per_image + part) * max_instances + slot) * columns;
  }
};

// Shared memory of a block that sums: [accumulators][tile rows + 1][slots][pixel scratch].
template <typename accscalar_t>
struct SumShared {
  double* accumulators;  // [groups, M, D + 1], or null
  accscalar_t* tile;     // [channels + 1, pitch]; the last row is the pixel's own quantity
  int32_t* slots;        // [T]
  accscalar_t* scratch;  // [T]
};

template <typename accscalar_t>
__host__ __device__ inline size_t sum_shared_bytes(const TileShape& tile, int64_t accumulators) {
  return accumulators * sizeof(double) +
         (static_cast<size_t>(tile.channels + 1) * tile.pitch + tile.pixels) * sizeof(accscalar_t) +
         tile.pixels * sizeof(int32_t);
}

template <typename accscalar_t>
__device__ __forceinline__ SumShared<accscalar_t> carve_sum_shared(unsigned char* shared,
                                                                   const SumPlan& plan,
                                                                   int64_t row_count,
                                                                   int64_t columns) {
  auto* accumulators = reinterpret_cast<double*>(shared);
  const int64_t count = plan.shared_accumulators ? plan.groups * row_count * columns : 0;
  auto* tile = reinterpret_cast<accscalar_t*>(accumulators + count);
  auto* scratch = tile + (plan.tile.channels + 1) * plan.tile.pitch;
  auto* slots = reinterpret_cast<int32_t*>(scratch + plan.tile.pixels);
  return {plan.shared_accumulators ? accumulators : nullptr, tile, slots, scratch};
}

// Sets the block's accumulators to 0 and returns them.
__device__ inline double* clear_accumulators(double* shared, const SumPlan& plan,
                                             const Partials& partials, const TileRange& range) {
  double* accumulators = shared != nullptr ? shared : partials.row(range.image, range.part, 0);
  const int64_t count = plan.groups * partials.max_instances * partials.columns;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    accumulators[i] = 0.0;
  }
  return accumulators;
}

// Adds rows [0, rows) of the tile, by slot, to columns first_column, ... of the accumulators.
// Ignored pixels (slot < 0) are left out.
template <typename accscalar_t>
__device__ inline void add_tile(const accscalar_t* tile, int pitch, const int32_t* slots,
                                int pixels, int rows, int64_t first_column, int groups,
                                double* accumulators, int64_t max_instances, int64_t columns) {
  const int group = threadIdx.x / rows, row = threadIdx.x % rows;
  if (group >= groups) {
    return;
  }
  const int segment = (pixels + groups - 1) / groups;
  const int begin = group * segment;
  const int end = begin + segment < pixels ? begin + segment : pixels;
  const accscalar_t* values = tile + row * pitch;
  double* column = accumulators + group * max_instances * columns + first_column + row;
  int32_t current = -1;
  accscalar_t sum = 0;
  for (int i = begin; i < end; ++i) {
    const int32_t slot = slots[i];
    if (slot != current) {
      if (current >= 0) {
        column[current * columns] += static_cast<double>(sum);
      }
      current = slot;
      sum = 0;
    }
    sum += values[i];
  }
  if (current >= 0) {
    column[current * columns] += static_cast<double>(sum);
  }
}

// Adds the groups of a block, in order, into its partial rows.
__device__ inline void write_partials(const double* shared, const SumPlan& plan,
                                      const Partials& partials, const TileRange& range) {
  if (shared == nullptr) {
    return;  // the accumulators are the partial rows
  }
  const int64_t columns = partials.columns;
  const int64_t stride = partials.max_instances * columns;
  for (int64_t i = threadIdx.x; i < stride; i += blockDim.x) {
    const int64_t slot = i / columns, column = i % columns;
    double sum = 0.0, last = 0.0;
    for (int g = 0; g < plan.groups; ++g) {
      sum += shared[g * stride + i];
      last += shared[g * stride + slot * columns + columns - 1];
    }
    if (last != 0.0 || column == columns - 1) {
      partials.row(range.image, range.part, slot)[column] = sum;
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

// The last column of an instance's partial rows, added over the blocks.
__device__ inline double reduce_last_column(const Partials& partials, int64_t image, int64_t slot,
                                            double* scratch) {
  double sum = 0.0;
  for (int64_t part = threadIdx.x; part < partials.blocks_per_image; part += blockDim.x) {
    sum += partials.row(image, part, slot)[partials.columns - 1];
  }
  return block_sum(sum, scratch);
}

// The other columns: calls write(column, sum) once for each. A warp takes every blockDim.x / 32-th
// partial row, a lane one column; the warps are added in order.
template <typename Write>
__device__ inline void reduce_columns(const Partials& partials, int64_t image, int64_t slot,
                                      double* scratch, Write write) {
  const int64_t last_column = partials.columns - 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int64_t first = 0; first < last_column; first += 32) {
    const int64_t column = first + lane;
    double sum = 0.0;
    for (int64_t part = warp; part < partials.blocks_per_image; part += warps) {
      const double* row = partials.row(image, part, slot);
      if (column < last_column && row[last_column] != 0.0) {
        sum += row[column];
      }
    }
    scratch[threadIdx.x] = sum;
    __syncthreads();  // all warps' sums are there
    if (warp == 0 && column < last_column) {
      for (int other = 1; other < warps; ++other) {
        sum += scratch[other * 32 + lane];
      }
      write(column, sum);
    }
    __syncthreads();  // they have been read: scratch is free
  }
}

}  // namespace discloss::cuda
