// Pass 3 over the pixels, the whole of backward:
//
//   dL/dx_i = 2 alpha/(K N_k) h_i d|v_i| + (P_k + R_k - S_k) / N_k
//
// with the weights of each image multiplied by its upstream gradients (docs/design.md).
#pragma once

#include "common/cuda/pixel.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/cuda/tile.cuh"
#include "common/cuda/tuning.h"
#include "launch.h"
#include "loss/loss_math.h"
#include "pull_kernels.cuh"

namespace discloss::cuda {

// Of an image's terms, in the sum that is differentiated.
struct TermWeights {
  double alpha;
  double beta;
  double gamma;
};

struct Upstreams {
  Upstream loss;
  Upstream variance;
  Upstream distance;
  Upstream regularization;
};

template <typename accscalar_t>
__device__ __forceinline__ double upstream_of(const Upstream& upstream, int64_t image) {
  return upstream.data == nullptr ? 0.0
                                  : static_cast<double>(static_cast<const accscalar_t*>(
                                        upstream.data)[image * upstream.stride]);
}

// The weights of an image's terms in the sum that is differentiated.
template <typename accscalar_t>
__device__ inline TermWeights upstream_weights(const TermWeights& weights,
                                               const Upstreams& upstreams, int64_t image) {
  const double loss = upstream_of<accscalar_t>(upstreams.loss, image);
  return {weights.alpha * loss + upstream_of<accscalar_t>(upstreams.variance, image),
          weights.beta * loss + upstream_of<accscalar_t>(upstreams.distance, image),
          weights.gamma * loss + upstream_of<accscalar_t>(upstreams.regularization, image)};
}

// What backward is given of the instances, and what it works out of them first:
//   factors [B, M] = 2 alpha/(K N_k)    shared_gradients [B, M, D] = (P_k + R_k - S_k) / N_k
template <typename accscalar_t>
struct GradientTables {
  int64_t images;            // B
  int64_t max_instances;     // M
  int64_t channels;          // D
  const int64_t* instances;  // [B]
  const int64_t* counts;     // [B, M]
  const accscalar_t* means;  // [B, M, D]
  const accscalar_t* pull;   // [B, M, D]
  const accscalar_t* push;   // [B, M, D]
  TermWeights weights;
  Upstreams upstreams;
  accscalar_t* factors;           // [B, M]
  accscalar_t* shared_gradients;  // [B, M, D]
};

// Grid-stride: a warp owns instance (b, k).
template <typename accscalar_t, int kNorm>
__device__ inline void instance_gradients(const GradientTables<accscalar_t>& tables) {
  const int lane = threadIdx.x % 32;
  const int64_t channels = tables.channels, rows = tables.images * tables.max_instances;
  for (int64_t row = first_warp(); row < rows; row += all_warps()) {
    const int64_t image = row / tables.max_instances;
    const int64_t instances = tables.instances[image], pixels = tables.counts[row];
    if (row % tables.max_instances >= instances) {
      continue;  // the whole warp
    }
    const accscalar_t* mean = tables.means + row * channels;
    accscalar_t sum = 0;
    for (int64_t d = lane; d < channels; d += 32) {
      sum = Norm<kNorm>::accumulate(sum, mean[d]);
    }
    const accscalar_t norm = Norm<kNorm>::finish(warp_sum(sum));
    const accscalar_t mean_scale = Norm<kNorm>::scale(accscalar_t(1), norm);
    const TermWeights w = upstream_weights<accscalar_t>(tables.weights, tables.upstreams, image);
    for (int64_t d = lane; d < channels; d += 32) {
      const int64_t at = row * channels + d;
      tables.shared_gradients[at] =
          shared_gradient(w.alpha, w.beta, w.gamma, tables.pull[at], tables.push[at],
                          mean_scale * Norm<kNorm>::direction(mean[d]), instances, pixels);
    }
    if (lane == 0) {
      tables.factors[row] = static_cast<accscalar_t>(w.alpha * pull_factor(instances, pixels));
    }
  }
}

template <typename accscalar_t, int kNorm>
__global__ void __launch_bounds__(kRowThreads, 6)
    instance_gradients_kernel(GradientTables<accscalar_t> tables) {
  follow_previous_kernel();
  instance_gradients<accscalar_t, kNorm>(tables);
}

// Per launch.
struct GradientPlan {
  TileShape tile;
  BlockRanges ranges;
  size_t shared_bytes;  // [tile.channels, pitch] and norms [T] accscalar_t, slots [T] int32
};

// From factors and shared gradients to the gradient of each pixel.
template <typename scalar_t, typename accscalar_t = typename Accumulate<scalar_t>::type>
struct GradientPass {
  GradientPlan plan;
  Images images;
  Global<const scalar_t*> embeddings;
  const int32_t* slots;  // [pixels]
  double delta_var;
  GradientTables<accscalar_t> tables;
  Global<scalar_t*> gradient;
};

// A tile's columns are overwritten by their gradient.
template <typename scalar_t, int kNorm>
__device__ __forceinline__ void write_gradient(const GradientPass<scalar_t>& pass) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  DISCLOSS_DYNAMIC_SHARED(raw);
  const GradientPlan& plan = pass.plan;
  const Images& images = pass.images;
  const GradientTables<accscalar_t>& tables = pass.tables;
  const int64_t channels = tables.channels;
  const int pitch = plan.tile.pitch;
  auto* tile = reinterpret_cast<accscalar_t*>(raw);
  accscalar_t* norms = tile + plan.tile.channels * pitch;
  auto* tile_slots = reinterpret_cast<int32_t*>(norms + plan.tile.pixels);
  const bool one_chunk = channels <= plan.tile.channels;

  for_each_image(images, plan.ranges, [&](const ImageRange& range) {
    const int64_t image = range.image, first_row = image * tables.max_instances;
    const PixelColumns<kNorm, accscalar_t> columns = {tables.means + first_row * channels, channels,
                                                      pitch};
    for_each_tile(range, plan.tile.pixels, [&](int64_t first_pixel, int pixels) {
      const auto source = [&](int64_t c, int rows) {
        return tile_source(pass.embeddings, images, {image, first_pixel, pixels, c, rows});
      };
      for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        tile_slots[i] = pass.slots[images.begin(image) + first_pixel + i];
      }
      for (int64_t c = 0; c < channels; c += plan.tile.channels) {
        const int rows = rows_of_chunk(channels, c, plan.tile);
        load_tile<kTileBatch<scalar_t>>(source(c, rows), tile, pitch);
        __syncthreads();  // the tile and its slots are there
        columns.add_norms(tile, tile_slots, pixels, c, rows, norms);
        __syncthreads();  // the tile has been read
      }
      // From here norms [T] holds 2 alpha/(K N_k) scale(h_i, |v_i|).
      for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        if (tile_slots[i] >= 0) {
          const accscalar_t norm = Norm<kNorm>::finish(norms[i]);
          const accscalar_t h = hinge(norm - static_cast<accscalar_t>(pass.delta_var));
          norms[i] = tables.factors[first_row + tile_slots[i]] * Norm<kNorm>::scale(h, norm);
        }
      }
      for (int64_t c = 0; c < channels; c += plan.tile.channels) {
        const int rows = rows_of_chunk(channels, c, plan.tile);
        if (!one_chunk) {
          load_tile<1>(source(c, rows), tile, pitch);
          __syncthreads();  // the chunk is there
        }
        for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
          const int64_t at = (first_row + tile_slots[i]) * channels + c;
          for (int r = 0; r < rows; ++r) {
            accscalar_t g = 0;
            if (tile_slots[i] >= 0) {
              const accscalar_t v = tile[r * pitch + i] - tables.means[at + r];
              g = norms[i] * Norm<kNorm>::direction(v) + tables.shared_gradients[at + r];
            }
            tile[r * pitch + i] = g;
          }
        }
        __syncthreads();  // the tile holds the gradient
        store_tile<scalar_t>(
            tile, pitch, tile_source(pass.gradient, images, {image, first_pixel, pixels, c, rows}));
        __syncthreads();  // it has been stored: the next tile may be loaded
      }
    });
  });
}

template <typename scalar_t, int kNorm>
__global__ void __launch_bounds__(kPassThreads, resident_blocks(0))
    gradient_kernel(GradientPass<scalar_t> pass) {
  follow_previous_kernel();
  write_gradient<scalar_t, kNorm>(pass);
}

// The same for the usual numbers of channels, a pixel in the registers of one thread: no shared
// memory, no barrier.
template <typename scalar_t, int kChannels>
__global__ void __launch_bounds__(kPassThreads, resident_blocks(kChannels))
    gradient_in_registers_kernel(GradientPass<scalar_t> pass) {
  follow_previous_kernel();
  const GradientTables<float>& tables = pass.tables;
  const Images& images = pass.images;
  for_each_image(images, pass.plan.ranges, [&](const ImageRange& range) {
    const int32_t* slots = pass.slots + images.begin(range.image);
    const int64_t from = images.embedding(range.image, pass.embeddings.strides);
    const int64_t to = images.embedding(range.image, pass.gradient.strides);
    for (int64_t i = range.begin + threadIdx.x; i < range.end; i += blockDim.x) {
      Pixel<kChannels> pixel;
      pixel.load(pass.embeddings, from + i * pass.embeddings.strides.pixel);
      const int32_t slot = slots[i];
      if (slot < 0) {
        pixel.clear();
      } else {
        const int64_t row = range.image * tables.max_instances + slot;
        const float norm = Norm<2>::finish(pixel.subtract(tables.means + row * kChannels));
        const float h = hinge(norm - static_cast<float>(pass.delta_var));
        pixel.scale_and_add(tables.factors[row] * Norm<2>::scale(h, norm),
                            tables.shared_gradients + row * kChannels);
      }
      pixel.store(pass.gradient, to + i * pass.gradient.strides.pixel);
    }
  });
}

}  // namespace discloss::cuda
