// Between the passes: everything of size K x D. Push (distance) and regularization terms, and the
// loss of each image.
//
//   L_dist = 1/(K(K-1)) sum_{a != b} [2 delta_dist - |mu_a - mu_b|]_+^2      L_reg = 1/K sum |mu_k|
#pragma once

#include "common/cuda/pixel.cuh"
#include "common/cuda/portability.cuh"
#include "launch.h"
#include "loss/loss_math.h"
#include "sums.cuh"

namespace discloss::cuda {

// A warp owns instance (b, k), then the next, and walks over all others, a lane a pair for the
// distances, then a lane a channel for the derivative. Every pair is visited from both ends, so
// that no two warps write one address.
//   push [B, M, D] = dL_dist/dmu_k    push_sums [B, M] = sum_b hinge^2
template <typename accscalar_t, int kNorm>
__device__ inline void push_instances(int64_t images, int64_t max_instances, int64_t channels,
                                      const int64_t* instances, const accscalar_t* means,
                                      double delta_dist, accscalar_t* push, double* push_sums) {
  const int lane = threadIdx.x % 32;
  const accscalar_t margin = static_cast<accscalar_t>(2.0 * delta_dist);
  for (int64_t row = first_warp(); row < images * max_instances; row += all_warps()) {
    const int64_t image = row / max_instances, k = row % max_instances, count = instances[image];
    const accscalar_t* image_means = means + image * max_instances * channels;
    const accscalar_t* mean = image_means + k * channels;
    accscalar_t* gradient = push + row * channels;
    for (int64_t d = lane; d < channels; d += 32) {
      gradient[d] = 0;
    }
    double squares = 0.0;
    for (int64_t first = 0; k < count && first < count; first += 32) {
      const int64_t other = first + lane;
      accscalar_t weight = 0;
      if (other < count && other != k) {
        accscalar_t sum = 0;
        for (int64_t d = 0; d < channels; ++d) {
          sum = Norm<kNorm>::accumulate(sum, mean[d] - image_means[other * channels + d]);
        }
        const accscalar_t distance = Norm<kNorm>::finish(sum);
        const accscalar_t h = hinge(margin - distance);
        squares += static_cast<double>(h) * static_cast<double>(h);
        weight = Norm<kNorm>::scale(h, distance);
      }
      const unsigned pushed = __ballot_sync(0xffffffffu, weight != accscalar_t(0));
      for (int64_t c = 0; pushed != 0 && c < channels; c += 32) {
        const int64_t d = c + lane < channels ? c + lane : c;
        double sum = 0.0;
        for (unsigned left = pushed; left != 0; left &= left - 1) {
          const int at = __ffs(left) - 1;
          const accscalar_t v = mean[d] - image_means[(first + at) * channels + d];
          sum += static_cast<double>(__shfl_sync(0xffffffffu, weight, at)) *
                 static_cast<double>(Norm<kNorm>::direction(v));
        }
        if (c + lane < channels) {
          gradient[d] += static_cast<accscalar_t>(push_factor(count) * sum);
        }
      }
    }
    squares = warp_sum(squares);
    if (lane == 0) {
      push_sums[row] = squares;
    }
  }
}

template <typename accscalar_t, int kNorm>
__global__ void __launch_bounds__(kRowThreads, 4)
    push_kernel(int64_t images, int64_t max_instances, int64_t channels, const int64_t* instances,
                const accscalar_t* means, double delta_dist, accscalar_t* push, double* push_sums) {
  follow_previous_kernel();
  push_instances<accscalar_t, kNorm>(images, max_instances, channels, instances, means, delta_dist,
                                     push, push_sums);
}

// The same for the usual numbers of channels. A block owns 16 instances of an image; each half of a
// warp holds their means in registers and meets every 2 kWarps-th of the others. Most pairs are too
// far apart to be pushed, which often shows in half of their channels; the others could hold a NaN
// then, or a difference of infinities, only where a norm is not finite.
template <int kChannels>
struct PushBlock {
  static constexpr int kThreads = kChannels <= 16 ? 512 : 256;
  static constexpr int kInstances = 16;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kSums = kChannels + 1;  // of an instance: squares, and the gradient
  static constexpr size_t kSharedBytes = kWarps * kInstances * kSums * sizeof(double);
};

template <int kChannels>
__global__ void __launch_bounds__(PushBlock<kChannels>::kThreads)
    push_in_registers_kernel(int64_t max_instances, const int64_t* instances, const float* means,
                             const float* mean_norms, double delta_dist, float* push,
                             double* push_sums) {
  follow_previous_kernel();
  using Block = PushBlock<kChannels>;
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* found = reinterpret_cast<double*>(raw);  // [warps, instances, sums]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = lane / Block::kInstances;
  const int64_t groups = (max_instances + Block::kInstances - 1) / Block::kInstances;
  const int64_t image = blockIdx.x / groups, first_k = blockIdx.x % groups * Block::kInstances;
  const int64_t k = first_k + lane % Block::kInstances;
  const int64_t count = instances[image];
  const float* image_means = means + image * max_instances * kChannels;
  const float* norms = mean_norms + image * max_instances;
  const float margin = static_cast<float>(2.0 * delta_dist);
  const float far = margin * margin * 1.00001f;  // a little more than rounding

  Pixel<kChannels> mean;
  mean.clear();
  if (k < count) {
    mean.load_row(image_means + k * kChannels);
  }
  const float norm = k < count ? norms[k] : 0.0f;
  double gradient[kChannels] = {}, squares = 0.0;
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
    const float weight = Norm<2>::scale(h, distance);
    squares += static_cast<double>(h) * static_cast<double>(h);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      // A weight of 0 may meet an infinite difference.
      gradient[c] +=
          weight == 0.0f ? 0.0 : static_cast<double>(weight) * static_cast<double>(v.values[c]);
    }
  }

  // The halves of a warp, then the warps in order.
  const auto store = [&](int column, double sum) {
    sum += __shfl_xor_sync(0xffffffffu, sum, Block::kInstances);
    if (half == 0) {
      found[(warp * Block::kInstances + lane) * Block::kSums + column] = sum;
    }
  };
  store(0, squares);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    store(1 + c, gradient[c]);
  }
  __syncthreads();  // all warps' sums are there
  const double factor = push_factor(count);
  for (int i = threadIdx.x; i < Block::kInstances * Block::kSums; i += blockDim.x) {
    const int column = i % Block::kSums;
    const int64_t own = first_k + i / Block::kSums, to = image * max_instances + own;
    double sum = 0.0;
#pragma unroll
    for (int other = 0; other < Block::kWarps; ++other) {
      sum += found[other * Block::kInstances * Block::kSums + i];
    }
    if (own < max_instances && column == 0) {
      push_sums[to] = sum;
    } else if (own < max_instances) {
      push[to * kChannels + column - 1] = static_cast<float>(factor * sum);
    }
  }
}

// Adds values [count] with all threads of a block, in a fixed order, for all of them.
template <typename T>
__device__ inline double sum_values(const T* values, int64_t count, double* scratch) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    sum += static_cast<double>(values[i]);
  }
  return block_sum(sum, scratch);
}

template <typename accscalar_t>
struct TermSums {
  const double* variance;    // [B, M] parts of L_var
  const double* push;        // [B, M] squared hinges
  const accscalar_t* norms;  // [B, M] |mu_k|
};

// What an image's terms are put together with.
template <typename accscalar_t>
struct Terms {
  double alpha;
  double beta;
  double gamma;
  accscalar_t* loss;            // [B]
  accscalar_t* variance;        // [B]
  accscalar_t* distance;        // [B]
  accscalar_t* regularization;  // [B]
};

// A block owns images blockIdx.x, blockIdx.x + gridDim.x, ... scratch [blockDim.x]
template <typename accscalar_t>
__device__ inline void finish_images(const TermSums<accscalar_t>& sums, int64_t images,
                                     int64_t max_instances, const int64_t* instances,
                                     const Terms<accscalar_t>& terms, double* scratch) {
  for (int64_t image = blockIdx.x; image < images; image += gridDim.x) {
    const int64_t first = image * max_instances, count = instances[image];
    const double pulled = sum_values(sums.variance + first, count, scratch);
    const double pushed = distance_factor(count) * sum_values(sums.push + first, count, scratch);
    const double norms = sum_values(sums.norms + first, count, scratch);
    if (threadIdx.x == 0) {
      const double regularized = count > 0 ? norms / static_cast<double>(count) : 0.0;
      terms.variance[image] = static_cast<accscalar_t>(pulled);
      terms.distance[image] = static_cast<accscalar_t>(pushed);
      terms.regularization[image] = static_cast<accscalar_t>(regularized);
      terms.loss[image] = static_cast<accscalar_t>(terms.alpha * pulled + terms.beta * pushed +
                                                   terms.gamma * regularized);
    }
  }
}

template <typename accscalar_t>
__global__ void __launch_bounds__(kRowThreads, 4)
    finish_kernel(TermSums<accscalar_t> sums, int64_t images, int64_t max_instances,
                  const int64_t* instances, Terms<accscalar_t> terms) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  finish_images(sums, images, max_instances, instances, terms, reinterpret_cast<double*>(raw));
}

}  // namespace discloss::cuda
