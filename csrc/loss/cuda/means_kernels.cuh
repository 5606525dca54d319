// Pass 1 over the pixels: N_k and mu_k.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "launch.h"
#include "loss/loss_math.h"
#include "sums.cuh"

namespace discloss::cuda {

// The own sums are numbers of pixels, those of the channels sum_i x_i.
template <typename scalar_t>
__device__ __forceinline__ void sum_pixels(const SumPlan& plan, int64_t channels,
                                           const Global<const scalar_t*>& embeddings,
                                           const int32_t* slots, const Partials& partials) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  DISCLOSS_DYNAMIC_SHARED(raw);
  const auto shared = carve_sum_shared<accscalar_t>(raw, plan);
  const Images& images = partials.images;

  for_each_image(images, plan.ranges, [&](const ImageRange& range) {
    const int64_t image = range.image;
    double* sums = clear_accumulators(shared.accumulators, plan, partials, image);
    for_each_tile(range, plan.tile.pixels, [&](int64_t first_pixel, int pixels) {
      find_run_ends(plan, slots + images.begin(image) + first_pixel, pixels, shared.run_ends);
      for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        shared.own[i] = accscalar_t(1);
      }
      for (int64_t c = 0; c < channels; c += plan.tile.channels) {
        const int rows = rows_of_chunk(channels, c, plan.tile);
        load_tile<kTileBatch<scalar_t>>(
            tile_source(embeddings, images, {image, first_pixel, pixels, c, rows}), shared.tile,
            plan.tile.pitch);
        __syncthreads();  // the tile, its run ends and the cleared accumulators are there
        add_tile(plan, shared.run_ends, pixels, summed_rows(shared, c, rows), partials, sums);
      }
    });
    write_partials(sums, plan, partials, image);
    __syncthreads();  // they have been read: the next image may clear them
  });
}

template <typename scalar_t>
__global__ void __launch_bounds__(kPassThreads, resident_blocks(0))
    sum_pixels_kernel(SumPlan plan, int64_t channels, Global<const scalar_t*> embeddings,
                      const int32_t* slots, Partials partials) {
  follow_previous_kernel();
  sum_pixels<scalar_t>(plan, channels, embeddings, slots, partials);
}

// Of an instance without pixels 0.
template <typename accscalar_t>
__device__ __forceinline__ accscalar_t mean_of(double count, double sum) {
  return count > 0.0 ? static_cast<accscalar_t>(sum / count) : accscalar_t(0);
}

// A block owns instance (b, k) and turns its partial sums into N_k, mu_k and |mu_k|.
template <typename accscalar_t, int kNorm>
__global__ void __launch_bounds__(kRowThreads, 6)
    reduce_means_kernel(Partials partials, int64_t* counts, accscalar_t* means,
                        accscalar_t* mean_norms) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);
  const int64_t image = blockIdx.x / partials.max_instances;
  const int64_t slot = blockIdx.x % partials.max_instances;
  const double count = reduce_own(partials, image, slot, scratch);
  if (threadIdx.x == 0) {
    counts[blockIdx.x] = static_cast<int64_t>(count);
  }
  accscalar_t* mean = means + blockIdx.x * partials.channels;
  accscalar_t norm = 0;  // of the channels of a lane of the first warp
  reduce_channels(partials, image, slot, scratch, [&](int64_t channel, double sum) {
    const auto value = mean_of<accscalar_t>(count, sum);
    mean[channel] = value;
    norm = Norm<kNorm>::accumulate(norm, value);
  });
  norm = warp_sum(norm);
  if (threadIdx.x == 0) {
    mean_norms[blockIdx.x] = Norm<kNorm>::finish(norm);
  }
}

}  // namespace discloss::cuda
