// Pass 1 over the pixels: N_k and mu_k.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "common/cuda/tuning.h"
#include "forward_pass.cuh"
#include "loss/loss_math.h"
#include "partials.cuh"
#include "sums.cuh"

namespace discloss::cuda {

// The weight of a pixel is 1: weights add up to numbers of pixels, channels to sum_i x_i.
template <typename scalar_t>
__device__ __forceinline__ void sum_pixels(const ForwardPass<scalar_t>& pass) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  DISCLOSS_DYNAMIC_SHARED(raw);
  const SumPlan& plan = pass.plan;
  const Partials& partials = pass.tables.partials;
  const Images& images = partials.images;
  const int64_t channels = partials.channels;
  const auto shared = carve_sum_shared<accscalar_t>(raw, plan);

  for_each_image(images, plan.ranges, [&](const ImageRange& range) {
    const int64_t image = range.image;
    double* sums = clear_accumulators(shared.accumulators, plan, partials, image);
    for_each_tile(range, plan.tile.pixels, [&](int64_t first_pixel, int pixels) {
      find_run_ends(plan, pass.slots + images.begin(image) + first_pixel, pixels, shared.run_ends);
      for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        shared.weights[i] = accscalar_t(1);
      }
      for (int64_t c = 0; c < channels; c += plan.tile.channels) {
        const int rows = rows_of_chunk(channels, c, plan.tile);
        load_tile<kTileBatch<scalar_t>>(
            tile_source(pass.embeddings, images, {image, first_pixel, pixels, c, rows}),
            shared.tile, plan.tile.pitch);
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
    sum_pixels_kernel(ForwardPass<scalar_t> pass) {
  follow_previous_kernel();
  sum_pixels(pass);
}

// Of an instance without pixels 0.
template <typename accscalar_t>
__device__ __forceinline__ accscalar_t mean_of(double count, double sum) {
  return count > 0.0 ? static_cast<accscalar_t>(sum / count) : accscalar_t(0);
}

// A block owns instance (b, k) and turns its partial sums into N_k, mu_k and |mu_k|.
template <typename accscalar_t, int kNorm>
__global__ void __launch_bounds__(kRowThreads, 6)
    reduce_means_kernel(ForwardTables<accscalar_t> tables) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);
  const int64_t image = blockIdx.x / tables.max_instances();
  const int64_t slot = blockIdx.x % tables.max_instances();
  const double count = reduce_weight(tables.partials, image, slot, scratch);
  if (threadIdx.x == 0) {
    tables.counts[blockIdx.x] = static_cast<int64_t>(count);
  }
  accscalar_t* mean = tables.means + blockIdx.x * tables.channels();
  accscalar_t norm = 0;  // of the channels of a lane of the first warp
  reduce_channels(tables.partials, image, slot, scratch, [&](int64_t channel, double sum) {
    const auto value = mean_of<accscalar_t>(count, sum);
    mean[channel] = value;
    norm = Norm<kNorm>::accumulate(norm, value);
  });
  norm = warp_sum(norm);
  if (threadIdx.x == 0) {
    tables.mean_norms[blockIdx.x] = Norm<kNorm>::finish(norm);
  }
}

// The same of few partial sums, grid-stride: a warp owns instance (b, k).
__device__ inline void reduce_means_in_warps(const ForwardTables<float>& tables) {
  const Partials& partials = tables.partials;
  for (int64_t row = first_warp(); row < tables.rows(); row += all_warps()) {
    const int64_t image = row / partials.max_instances, slot = row % partials.max_instances;
    const double count = reduce_weight_in_warp(partials, image, slot);
    float norm = 0;
    for (int64_t d = threadIdx.x % 32; d < partials.channels; d += 32) {
      const float value = mean_of<float>(count, reduce_channel_in_lane(partials, image, slot, d));
      tables.means[row * partials.channels + d] = value;
      norm = Norm<2>::accumulate(norm, value);
    }
    norm = warp_sum(norm);
    if (threadIdx.x % 32 == 0) {
      tables.counts[row] = static_cast<int64_t>(count);
      tables.mean_norms[row] = Norm<2>::finish(norm);
    }
  }
}

}  // namespace discloss::cuda
