// Pass 1 over the pixels: slots, N_k and mu_k.
#pragma once

#include "ids_kernels.cuh"
#include "launch.h"
#include "portability.cuh"
#include "sums.cuh"
#include "tile.cuh"

namespace discloss::cuda {

// A block owns a range of an image's tiles and one set of partial rows. Columns 0..D-1 receive
// sum_i x_i, column D the number of pixels. slots [pixels] receives the slot of each.
template <typename scalar_t>
__global__ void __launch_bounds__(256, 3)
    sum_pixels_kernel(SumPlan plan, Images images, int64_t channels, Labels labels, IdTable table,
                      Global<const scalar_t*> embeddings, int32_t* slots, Partials partials) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  DISCLOSS_DYNAMIC_SHARED(raw);
  const auto shared =
      carve_sum_shared<accscalar_t>(raw, plan, partials.max_instances, partials.columns);
  const TileRange range = tile_range(images, plan.blocks_per_image, plan.tile.pixels);
  double* accumulators = clear_accumulators(shared.accumulators, plan, partials, range);
  const int64_t begin = images.begin(range.image);

  for (int64_t t = range.first; t < range.last; ++t) {
    const int pixels = pixels_of_tile(images, range.image, t, plan.tile.pixels);
    const int64_t first_pixel = t * plan.tile.pixels;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
      const int64_t pixel = begin + first_pixel + i;
      const int32_t slot = find_slot(table, range.image, load_label(labels, pixel));
      shared.slots[i] = slot;
      slots[pixel] = slot;
    }
    for (int64_t c = 0; c < channels; c += plan.tile.channels) {
      const int rows = rows_of_chunk(channels, c, plan.tile);
      const bool with_count = c + rows == channels;
      load_tile(tile_source(embeddings, images, range.image, first_pixel, pixels, c, rows),
                shared.tile, plan.tile.pitch);
      if (with_count) {
        for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
          shared.tile[rows * plan.tile.pitch + i] = accscalar_t(1);
        }
      }
      __syncthreads();  // the tile, its slots and the cleared accumulators are there
      add_tile(shared.tile, plan.tile.pitch, shared.slots, pixels, rows + with_count, c,
               plan.groups, accumulators, partials.max_instances, partials.columns);
      __syncthreads();  // the tile has been read: the next one may be loaded
    }
  }
  __syncthreads();  // without a tile, the accumulators were cleared by other threads
  write_partials(shared.accumulators, plan, partials, range);
}

// A block owns instance (b, k) and turns its partial rows into N_k and mu_k.
template <typename accscalar_t>
__global__ void __launch_bounds__(128, 4)
    reduce_means_kernel(Partials partials, int64_t* counts, accscalar_t* means) {
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);
  const int64_t image = blockIdx.x / partials.max_instances;
  const int64_t slot = blockIdx.x % partials.max_instances;
  const double count = reduce_last_column(partials, image, slot, scratch);
  if (threadIdx.x == 0) {
    counts[blockIdx.x] = static_cast<int64_t>(count);
  }
  accscalar_t* mean = means + blockIdx.x * (partials.columns - 1);
  reduce_columns(partials, image, slot, scratch, [&](int64_t channel, double sum) {
    mean[channel] = count > 0.0 ? static_cast<accscalar_t>(sum / count) : accscalar_t(0);
  });
}

}  // namespace discloss::cuda
