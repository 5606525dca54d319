// Pass 2 over the pixels: the pull (variance) term and S_k, what each mean feels of it.
//
//   v_i = x_i - mu_k    h_i = [|v_i| - delta_var]_+                                        (eq. 1)
//   L_var = sum_k 1/(K N_k) sum_i h_i^2    pull_k = 2/(K N_k) sum_i h_i d|v_i|
#pragma once

#include "../loss_math.h"
#include "launch.h"
#include "portability.cuh"
#include "sums.cuh"
#include "tile.cuh"

namespace discloss::cuda {

// The columns of a tile's pixels relative to their means, one thread a pixel. A tile of more
// channels than fit is visited chunk by chunk: add_norms for each, then the rest for each again.
template <int kNorm, typename accscalar_t>
struct PixelColumns {
  const accscalar_t* means;  // [M, D] of the image
  int64_t channels;          // D
  int pitch;

  // norms [T] += the part of |v_i|'s sum that lies in channels c, ..., c + rows - 1.
  __device__ __forceinline__ void add_norms(const accscalar_t* tile, const int32_t* slots,
                                            int pixels, int64_t c, int rows,
                                            accscalar_t* norms) const {
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
      accscalar_t sum = c == 0 ? accscalar_t(0) : norms[i];
      if (slots[i] >= 0) {
        const accscalar_t* mean = means + slots[i] * channels + c;
#pragma unroll 4
        for (int r = 0; r < rows; ++r) {
          sum = Norm<kNorm>::accumulate(sum, tile[r * pitch + i] - mean[r]);
        }
      }
      norms[i] = sum;
    }
  }
};

// A block owns a range of an image's tiles and one set of partial rows. Columns 0..D-1 receive
// sum_i h_i d|v_i|, column D sum_i h_i^2: where that is 0, every h_i is, and so is the row.
template <typename scalar_t, int kNorm>
__global__ void __launch_bounds__(256, 3)
    sum_pull_kernel(SumPlan plan, Images images, int64_t channels,
                    Global<const scalar_t*> embeddings, const int32_t* slots,
                    const typename Accumulate<scalar_t>::type* means, double delta_var,
                    Partials partials) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  DISCLOSS_DYNAMIC_SHARED(raw);
  const auto shared =
      carve_sum_shared<accscalar_t>(raw, plan, partials.max_instances, partials.columns);
  const TileRange range = tile_range(images, plan.blocks_per_image, plan.tile.pixels);
  double* accumulators = clear_accumulators(shared.accumulators, plan, partials, range);
  const int pitch = plan.tile.pitch;
  const PixelColumns<kNorm, accscalar_t> columns = {
      means + range.image * partials.max_instances * channels, channels, pitch};
  accscalar_t* norms = shared.scratch;

  for (int64_t t = range.first; t < range.last; ++t) {
    const int pixels = pixels_of_tile(images, range.image, t, plan.tile.pixels);
    const int64_t first_pixel = t * plan.tile.pixels;
    const int32_t* tile_slots = slots + images.begin(range.image) + first_pixel;
    const auto load = [&](int64_t c, int rows) {
      load_tile(tile_source(embeddings, images, range.image, first_pixel, pixels, c, rows),
                shared.tile, pitch);
    };
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
      shared.slots[i] = tile_slots[i];
    }
    for (int64_t c = 0; c < channels; c += plan.tile.channels) {
      const int rows = rows_of_chunk(channels, c, plan.tile);
      load(c, rows);
      __syncthreads();  // the tile, its slots and the cleared accumulators are there
      columns.add_norms(shared.tile, shared.slots, pixels, c, rows, norms);
      __syncthreads();  // the tile has been read
    }
    // From here norms [T] holds scale(h_i, |v_i|), and the row behind the channels h_i^2.
    bool open = false;
    const int last_rows =
        static_cast<int>(channels - (channels - 1) / plan.tile.channels * plan.tile.channels);
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
      const accscalar_t norm = Norm<kNorm>::finish(norms[i]);
      const accscalar_t h =
          shared.slots[i] < 0 ? accscalar_t(0) : hinge(norm - static_cast<accscalar_t>(delta_var));
      norms[i] = Norm<kNorm>::scale(h, norm);
      shared.tile[last_rows * pitch + i] = h * h;
      open |= h != accscalar_t(0);
    }
    if (!__syncthreads_or(open)) {
      continue;  // late in training most tiles lie within the margin
    }
    for (int64_t c = (channels - 1) / plan.tile.channels * plan.tile.channels; c >= 0;
         c -= plan.tile.channels) {
      const bool last = c + last_rows == channels;
      const int rows = last ? last_rows : plan.tile.channels;
      if (!last) {
        load(c, rows);
        __syncthreads();  // the chunk is there
      }
      for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        if (shared.slots[i] >= 0) {
          const accscalar_t* mean = columns.means + shared.slots[i] * channels + c;
          for (int r = 0; r < rows; ++r) {
            const accscalar_t v = shared.tile[r * pitch + i] - mean[r];
            shared.tile[r * pitch + i] =
                norms[i] == accscalar_t(0) ? accscalar_t(0) : norms[i] * Norm<kNorm>::direction(v);
          }
        }
      }
      __syncthreads();  // the rows hold h_i d|v_i|
      add_tile(shared.tile, pitch, shared.slots, pixels, rows + last, c, plan.groups, accumulators,
               partials.max_instances, partials.columns);
      __syncthreads();  // the tile has been read: the next may be loaded
    }
  }
  __syncthreads();  // without a tile, the accumulators were cleared by other threads
  write_partials(shared.accumulators, plan, partials, range);
}

// A block owns instance (b, k): pull [B, M, D], and variance_sums [B, M] its part of L_var.
template <typename accscalar_t>
__global__ void __launch_bounds__(128, 4)
    reduce_pull_kernel(Partials partials, const int64_t* instances, const int64_t* counts,
                       accscalar_t* pull, double* variance_sums) {
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);
  const int64_t image = blockIdx.x / partials.max_instances;
  const int64_t slot = blockIdx.x % partials.max_instances;
  const int64_t count = counts[blockIdx.x];
  const double squares = reduce_last_column(partials, image, slot, scratch);
  if (threadIdx.x == 0) {
    variance_sums[blockIdx.x] =
        count > 0 ? variance_factor(instances[image], count) * squares : 0.0;
  }
  accscalar_t* row = pull + blockIdx.x * (partials.columns - 1);
  reduce_columns(partials, image, slot, scratch, [&](int64_t channel, double sum) {
    row[channel] = count > 0 ? static_cast<accscalar_t>(pull_factor(instances[image], count) * sum)
                             : accscalar_t(0);
  });
}

}  // namespace discloss::cuda
