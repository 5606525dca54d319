// The push (distance) term between the means of an image, and its derivative:
//
//   L_dist = 1/(K(K-1)) sum_{a != b} [2 delta_dist - |mu_a - mu_b|]_+^2                    (eq. 2)
#pragma once

#include <limits>

#include "common/cuda/pixel.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/cuda/tuning.h"
#include "forward_pass.cuh"
#include "loss/loss_math.h"

namespace discloss::cuda {

// Grid-stride: a warp owns instance (b, k) and visits all others, a lane a pair for the distances,
// then a lane a channel for the derivative. Every pair is visited from both ends, so that no two
// warps write one address.
//   push [B, M, D] = dL_dist/dmu_k    push_sums [B, M] = sum_b hinge^2
template <typename accscalar_t, int kNorm>
__device__ inline void push_instances(const ForwardTables<accscalar_t>& tables) {
  const int lane = threadIdx.x % 32;
  const int64_t max_instances = tables.max_instances(), channels = tables.channels();
  const accscalar_t margin = static_cast<accscalar_t>(2.0 * tables.delta_dist);
  for (int64_t row = first_warp(); row < tables.rows(); row += all_warps()) {
    const int64_t image = row / max_instances, k = row % max_instances;
    const int64_t count = tables.instances[image];
    const accscalar_t* image_means = tables.means + image * max_instances * channels;
    const accscalar_t* mean = image_means + k * channels;
    accscalar_t* gradient = tables.push + row * channels;
    for (int64_t d = lane; d < channels; d += 32) {
      gradient[d] = 0;
    }
    double squares = 0.0;
    for (int64_t first = 0; k < count && first < count; first += 32) {
      const int64_t other = first + lane;
      accscalar_t scale = 0;
      if (other < count && other != k) {
        accscalar_t sum = 0;
        for (int64_t d = 0; d < channels; ++d) {
          sum = Norm<kNorm>::accumulate(sum, mean[d] - image_means[other * channels + d]);
        }
        const accscalar_t distance = Norm<kNorm>::finish(sum);
        const accscalar_t h = hinge(margin - distance);
        squares += static_cast<double>(h) * static_cast<double>(h);
        scale = Norm<kNorm>::scale(h, distance);
      }
      const unsigned pushed = __ballot_sync(0xffffffffu, scale != accscalar_t(0));
      for (int64_t c = 0; pushed != 0 && c < channels; c += 32) {
        const int64_t d = c + lane < channels ? c + lane : c;
        double sum = 0.0;
        for (unsigned left = pushed; left != 0; left &= left - 1) {
          const int at = __ffs(left) - 1;
          const accscalar_t v = mean[d] - image_means[(first + at) * channels + d];
          sum += static_cast<double>(__shfl_sync(0xffffffffu, scale, at)) *
                 static_cast<double>(Norm<kNorm>::direction(v));
        }
        if (c + lane < channels) {
          gradient[d] += static_cast<accscalar_t>(push_factor(count) * sum);
        }
      }
    }
    squares = warp_sum(squares);
    if (lane == 0) {
      tables.push_sums[row] = squares;
    }
  }
}

template <typename accscalar_t, int kNorm>
__global__ void __launch_bounds__(kRowThreads, 4) push_kernel(ForwardTables<accscalar_t> tables) {
  follow_previous_kernel();
  push_instances<accscalar_t, kNorm>(tables);
}

// The same for the usual numbers of channels. A block owns 16 instances of an image; each half of a
// warp holds their means in registers and meets every 2 kWarps-th of the others.
template <int kChannels>
struct PushBlock {
  static constexpr int kThreads = kChannels <= 16 ? 512 : 256;
  static constexpr int kInstances = 16;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kSums = kChannels + 1;  // of an instance: squares, and the gradient
  static constexpr size_t kSharedBytes = kWarps * kInstances * kSums * sizeof(double);
};

// The part of an instance's sums that one lane has.
template <int kChannels>
struct PushSums {
  double squares = 0.0;
  double gradient[kChannels] = {};
};

// Pairs whose computed |v|^2 is beyond kFar m^2, m = 2 delta_dist, have a computed |v| >= m, hence
// a hinge of exactly 0: with u = 2^-24, the bound is at least kFar m^2 (1 - u)^2 as it is rounded
// twice, and (1 + 4u)(1 - u)^2 > 1; the root is rounded to nearest, so monotonically, and m is a
// float. (Where m^2 is subnormal, |v|^2 is above the bound by a whole step, and both roundings
// together are no more.)
constexpr float kFar = 1.0f + 2.0f * std::numeric_limits<float>::epsilon();  // 1 + 4u

// A lane adds up instance k's pairs with instances first + half, ... of the image. Most pairs are
// too far apart to be pushed, which often shows in half of their channels, since a sum of squares
// only grows; the others could hold a NaN then, or a difference of infinities, only where a norm is
// not finite.
template <int kChannels>
__device__ __forceinline__ PushSums<kChannels> push_pairs(const ForwardTables<float>& tables,
                                                          int64_t image, int64_t first_k,
                                                          int64_t k) {
  using Block = PushBlock<kChannels>;
  const int warp = threadIdx.x / 32, half = threadIdx.x % 32 / Block::kInstances;
  const int64_t count = tables.instances[image];
  const float* image_means = tables.means + image * tables.max_instances() * kChannels;
  const float* norms = tables.mean_norms + image * tables.max_instances();
  const float margin = static_cast<float>(2.0 * tables.delta_dist);
  const float far = margin * margin * kFar;

  Pixel<kChannels> mean;
  mean.clear();
  if (k < count) {
    mean.load_row(image_means + k * kChannels);
  }
  const float norm = k < count ? norms[k] : 0.0f;
  PushSums<kChannels> sums;
  // The lanes of a warp stay together, for the vote.
  for (int64_t first = 2 * warp; first_k < count && first < count; first += 2 * Block::kWarps) {
    const int64_t other = first + half < count ? first + half : first;
    const bool is_pair = k < count && first + half < count && other != k;
    const float* row = image_means + other * kChannels;
    Pixel<kChannels> v = mean;
    float sum = v.template subtract<0, kChannels / 2>(row);
    const bool is_far = sum > far && norm + norms[other] < INFINITY;
    if (!__any_sync(0xffffffffu, is_pair && !is_far)) {
      continue;
    }
    sum += v.template subtract<kChannels / 2, kChannels>(row);
    if (!is_pair || sum > far) {
      continue;
    }
    const float distance = Norm<2>::finish(sum);
    const float h = hinge(margin - distance);
    const float scale = Norm<2>::scale(h, distance);
    sums.squares += static_cast<double>(h) * static_cast<double>(h);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      // A scale of 0 may meet an infinite difference.
      sums.gradient[c] +=
          scale == 0.0f ? 0.0 : static_cast<double>(scale) * static_cast<double>(v.values[c]);
    }
  }
  return sums;
}

// Adds the halves of each warp, then the warps in order: found [warps, instances, sums] is shared
// memory.
template <int kChannels>
__device__ __forceinline__ void reduce_push(const ForwardTables<float>& tables, int64_t image,
                                            int64_t first_k, const PushSums<kChannels>& sums,
                                            double* found) {
  using Block = PushBlock<kChannels>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto store = [&](int column, double sum) {
    sum += __shfl_xor_sync(0xffffffffu, sum, Block::kInstances);
    if (lane < Block::kInstances) {
      found[(warp * Block::kInstances + lane) * Block::kSums + column] = sum;
    }
  };
  store(0, sums.squares);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    store(1 + c, sums.gradient[c]);
  }
  __syncthreads();  // all warps' sums are there
  const double factor = push_factor(tables.instances[image]);
  for (int i = threadIdx.x; i < Block::kInstances * Block::kSums; i += blockDim.x) {
    const int column = i % Block::kSums;
    const int64_t k = first_k + i / Block::kSums, to = image * tables.max_instances() + k;
    double sum = 0.0;
#pragma unroll
    for (int other = 0; other < Block::kWarps; ++other) {
      sum += found[other * Block::kInstances * Block::kSums + i];
    }
    if (k < tables.max_instances() && column == 0) {
      tables.push_sums[to] = sum;
    } else if (k < tables.max_instances()) {
      tables.push[to * kChannels + column - 1] = static_cast<float>(factor * sum);
    }
  }
}

template <int kChannels>
__global__ void __launch_bounds__(PushBlock<kChannels>::kThreads)
    push_in_registers_kernel(ForwardTables<float> tables) {
  follow_previous_kernel();
  using Block = PushBlock<kChannels>;
  DISCLOSS_DYNAMIC_SHARED(raw);
  const int64_t groups = ceil_div(tables.max_instances(), Block::kInstances);
  const int64_t image = blockIdx.x / groups, first_k = blockIdx.x % groups * Block::kInstances;
  const int64_t k = first_k + threadIdx.x % Block::kInstances;
  const auto sums = push_pairs<kChannels>(tables, image, first_k, k);
  reduce_push<kChannels>(tables, image, first_k, sums, reinterpret_cast<double*>(raw));
}

}  // namespace discloss::cuda
