// Pass 2 over the pixels: the pull (variance) term and S_k, what each mean feels of it.
//
//   v_i = x_i - mu_k    h_i = [|v_i| - delta_var]_+                                        (eq. 1)
//   L_var = sum_k 1/(K N_k) sum_i h_i^2    pull_k = 2/(K N_k) sum_i h_i d|v_i|
#pragma once

#include "common/cuda/pixel.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "common/cuda/tuning.h"
#include "forward_pass.cuh"
#include "loss/loss_math.h"
#include "partials.cuh"
#include "sums.cuh"

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
#pragma unroll 2
        for (int r = 0; r < rows; ++r) {
          sum = Norm<kNorm>::accumulate(sum, tile[r * pitch + i] - mean[r]);
        }
      }
      norms[i] = sum;
    }
  }

  // tile = h_i d|v_i|, where norms [T] holds scale(h_i, |v_i|).
  __device__ __forceinline__ void scale_directions(const int32_t* slots, int pixels, int64_t c,
                                                   int rows, const accscalar_t* norms,
                                                   accscalar_t* tile) const {
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
      if (slots[i] >= 0) {
        const accscalar_t* mean = means + slots[i] * channels + c;
        for (int r = 0; r < rows; ++r) {
          const accscalar_t v = tile[r * pitch + i] - mean[r];
          tile[r * pitch + i] =
              norms[i] == accscalar_t(0) ? accscalar_t(0) : norms[i] * Norm<kNorm>::direction(v);
        }
      }
    }
  }
};

// norms [T], sums over channels, become scale(h_i, |v_i|), and squares [T] h_i^2; of ignored pixels
// 0. Returns whether any pixel of this thread is outside its margin, or NaN.
template <int kNorm, typename accscalar_t>
__device__ __forceinline__ bool find_hinges(const int32_t* slots, int pixels, accscalar_t delta_var,
                                            accscalar_t* norms, accscalar_t* squares) {
  bool open = false;
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
    const accscalar_t norm = Norm<kNorm>::finish(norms[i]);
    const accscalar_t h = slots[i] < 0 ? accscalar_t(0) : hinge(norm - delta_var);
    norms[i] = Norm<kNorm>::scale(h, norm);
    squares[i] = h * h;
    open |= h != accscalar_t(0);
  }
  return open;
}

// The weight of a pixel is h_i^2: where that of an instance is 0, every h_i is, or so small that
// its square is, and the instance counts as not pulled. The channels add up to sum_i h_i d|v_i|.
template <typename scalar_t, int kNorm>
__device__ __forceinline__ void sum_pull(const ForwardPass<scalar_t>& pass) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  DISCLOSS_DYNAMIC_SHARED(raw);
  const SumPlan& plan = pass.plan;
  const Partials& partials = pass.tables.partials;
  const Images& images = partials.images;
  const int64_t channels = partials.channels;
  const int pitch = plan.tile.pitch;
  const auto shared = carve_sum_shared<accscalar_t>(raw, plan);
  accscalar_t* norms = shared.scratch;
  const bool one_chunk = channels <= plan.tile.channels;

  for_each_image<Order::kDescending>(images, plan.ranges, [&](const ImageRange& range) {
    const int64_t image = range.image;
    double* sums = clear_accumulators(shared.accumulators, plan, partials, image);
    const PixelColumns<kNorm, accscalar_t> columns = {
        pass.tables.means + image * partials.max_instances * channels, channels, pitch};
    for_each_tile<Order::kDescending>(
        range, plan.tile.pixels, [&](int64_t first_pixel, int pixels) {
          const int32_t* tile_slots = pass.slots + images.begin(image) + first_pixel;
          const auto source = [&](int64_t c, int rows) {
            return tile_source(pass.embeddings, images, {image, first_pixel, pixels, c, rows});
          };
          find_run_ends(plan, tile_slots, pixels, shared.run_ends);
          for (int64_t c = 0; c < channels; c += plan.tile.channels) {
            const int rows = rows_of_chunk(channels, c, plan.tile);
            load_tile<kTileBatch<scalar_t>>(source(c, rows), shared.tile, pitch);
            __syncthreads();  // the tile, its run ends and the cleared accumulators are there
            columns.add_norms(shared.tile, tile_slots, pixels, c, rows, norms);
            __syncthreads();  // the tile has been read
          }
          // From here norms [T] holds scale(h_i, |v_i|).
          const bool open = find_hinges<kNorm>(
              tile_slots, pixels, static_cast<accscalar_t>(pass.delta_var), norms, shared.weights);
          if (!__syncthreads_or(open)) {
            return;  // late in training most tiles lie within the margin
          }
          for (int64_t c = 0; c < channels; c += plan.tile.channels) {
            const int rows = rows_of_chunk(channels, c, plan.tile);
            if (!one_chunk) {
              load_tile<1>(source(c, rows), shared.tile, pitch);
              __syncthreads();  // the chunk is there
            }
            columns.scale_directions(tile_slots, pixels, c, rows, norms, shared.tile);
            __syncthreads();  // the rows hold h_i d|v_i|
            add_tile(plan, shared.run_ends, pixels, summed_rows(shared, c, rows), partials, sums);
          }
        });
    write_partials(sums, plan, partials, image);
    __syncthreads();  // they have been read: the next image may clear them
  });
}

template <typename scalar_t, int kNorm>
__global__ void __launch_bounds__(kPassThreads, resident_blocks(0))
    sum_pull_kernel(ForwardPass<scalar_t> pass) {
  follow_previous_kernel();
  sum_pull<scalar_t, kNorm>(pass);
}

// The same for the usual numbers of channels, a pixel in the registers of one thread: embeddings
// and means are read once, and shared memory is for the sums alone.
template <typename scalar_t, int kChannels>
__global__ void __launch_bounds__(kPassThreads, resident_blocks(kChannels))
    sum_pull_in_registers_kernel(ForwardPass<scalar_t> pass) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  const SumPlan& plan = pass.plan;
  const Partials& partials = pass.tables.partials;
  const Images& images = partials.images;
  const int64_t pixel_stride = pass.embeddings.strides.pixel;
  const int pitch = plan.tile.pitch;
  const auto shared = carve_sum_shared<float>(raw, plan);

  for_each_image<Order::kDescending>(images, plan.ranges, [&](const ImageRange& range) {
    const int64_t image = range.image;
    double* sums = clear_accumulators(shared.accumulators, plan, partials, image);
    const float* image_means = pass.tables.means + image * partials.max_instances * kChannels;
    for_each_tile<Order::kDescending>(
        range, plan.tile.pixels, [&](int64_t first_pixel, int pixels) {
          const int32_t* tile_slots = pass.slots + images.begin(image) + first_pixel;
          find_run_ends(plan, tile_slots, pixels, shared.run_ends);
          const int64_t offset =
              images.embedding(image, pass.embeddings.strides) + first_pixel * pixel_stride;
          bool open = false;
          for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
            Pixel<kChannels> pixel;
            pixel.load(pass.embeddings, offset + i * pixel_stride);
            const int32_t slot = tile_slots[i];
            float h = 0, scale = 0;
            if (slot >= 0) {
              const float norm = Norm<2>::finish(pixel.subtract(image_means + slot * kChannels));
              h = hinge(norm - static_cast<float>(pass.delta_var));
              scale = Norm<2>::scale(h, norm);
              open |= h != 0.0f;
            }
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              shared.tile[c * pitch + i] = h == 0.0f ? 0.0f : scale * pixel.values[c];
            }
            shared.weights[i] = h * h;
          }
          if (!__syncthreads_or(open)) {  // else the tile, its run ends, the accumulators are there
            return;                       // late in training most tiles lie within the margin
          }
          add_tile(plan, shared.run_ends, pixels, summed_rows(shared, 0, kChannels), partials,
                   sums);
        });
    write_partials(sums, plan, partials, image);
    __syncthreads();  // they have been read: the next image may clear them
  });
}

// An instance's part of L_var, and a channel of what its mean feels of the pull: 0 without pixels.
__device__ __forceinline__ double variance_of(int64_t instances, int64_t count, double squares) {
  return count > 0 ? variance_factor(instances, count) * squares : 0.0;
}
template <typename accscalar_t>
__device__ __forceinline__ accscalar_t pull_of(int64_t instances, int64_t count, double sum) {
  return count > 0 ? static_cast<accscalar_t>(pull_factor(instances, count) * sum) : accscalar_t(0);
}

// A block owns instance (b, k): pull [B, M, D], and variance_sums [B, M] its part of L_var.
template <typename accscalar_t>
__global__ void __launch_bounds__(kRowThreads, 6)
    reduce_pull_kernel(ForwardTables<accscalar_t> tables) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);
  const int64_t image = blockIdx.x / tables.max_instances();
  const int64_t slot = blockIdx.x % tables.max_instances();
  const int64_t instances = tables.instances[image], count = tables.counts[blockIdx.x];
  const double squares = reduce_weight(tables.partials, image, slot, scratch);
  if (threadIdx.x == 0) {
    tables.variance_sums[blockIdx.x] = variance_of(instances, count, squares);
  }
  accscalar_t* row = tables.pull + blockIdx.x * tables.channels();
  reduce_channels(tables.partials, image, slot, scratch, [&](int64_t channel, double sum) {
    row[channel] = pull_of<accscalar_t>(instances, count, sum);
  });
}

// The same of few partial sums, grid-stride: a warp owns instance (b, k).
__device__ inline void reduce_pull_in_warps(const ForwardTables<float>& tables) {
  const Partials& partials = tables.partials;
  for (int64_t row = first_warp(); row < tables.rows(); row += all_warps()) {
    const int64_t image = row / partials.max_instances, slot = row % partials.max_instances;
    const int64_t instances = tables.instances[image], count = tables.counts[row];
    const double squares = reduce_weight_in_warp(partials, image, slot);
    for (int64_t d = threadIdx.x % 32; d < partials.channels; d += 32) {
      tables.pull[row * partials.channels + d] =
          pull_of<float>(instances, count, reduce_channel_in_lane(partials, image, slot, d));
    }
    if (threadIdx.x % 32 == 0) {
      tables.variance_sums[row] = variance_of(instances, count, squares);
    }
  }
}

}  // namespace discloss::cuda
