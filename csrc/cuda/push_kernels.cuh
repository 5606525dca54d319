// Between the passes: everything of size K x D. Push (distance) and regularization terms, and the
// loss of each image.
//
//   L_dist = 1/(K(K-1)) sum_{a != b} [2 delta_dist - |mu_a - mu_b|]_+^2      L_reg = 1/K sum |mu_k|
#pragma once

#include "../loss_math.h"
#include "launch.h"
#include "pixel.cuh"
#include "portability.cuh"
#include "sums.cuh"

namespace discloss::cuda {

// A block owns instance (b, k) and walks over all others, blockDim.x at a time: one thread a pair
// for the distances, then one thread a channel for the derivative. Every pair is visited from both
// ends, so that no two blocks write one address.
//   push [B, M, D] = dL_dist/dmu_k    push_sums [B, M] = sum_b hinge^2    mean_norms [B, M] =
//   |mu_k|
template <typename accscalar_t, int kNorm>
__global__ void __launch_bounds__(128, 4)
    push_kernel(int64_t max_instances, int64_t channels, const int64_t* instances,
                const accscalar_t* means, double delta_dist, accscalar_t* push, double* push_sums,
                double* mean_norms) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);                        // [blockDim.x]
  auto* weights = reinterpret_cast<accscalar_t*>(scratch + blockDim.x);  // [blockDim.x]
  const int64_t image = blockIdx.x / max_instances, k = blockIdx.x % max_instances;
  const int64_t count = instances[image];
  const accscalar_t* image_means = means + image * max_instances * channels;
  const accscalar_t* mean = image_means + k * channels;
  accscalar_t* gradient = push + blockIdx.x * channels;
  const accscalar_t margin = static_cast<accscalar_t>(2.0 * delta_dist);
  const double factor = push_factor(count);

  for (int64_t d = threadIdx.x; d < channels; d += blockDim.x) {
    gradient[d] = 0;
  }
  double squares = 0.0;
  for (int64_t first = 0; k < count && first < count; first += blockDim.x) {
    const int64_t other = first + threadIdx.x;
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
    weights[threadIdx.x] = weight;
    if (__syncthreads_or(weight != accscalar_t(0))) {
      for (int64_t d = threadIdx.x; d < channels; d += blockDim.x) {
        double sum = 0.0;
        for (int j = 0; j < static_cast<int>(blockDim.x); ++j) {
          if (weights[j] != accscalar_t(0)) {
            const accscalar_t v = mean[d] - image_means[(first + j) * channels + d];
            sum += static_cast<double>(weights[j]) * static_cast<double>(Norm<kNorm>::direction(v));
          }
        }
        gradient[d] += static_cast<accscalar_t>(factor * sum);
      }
      __syncthreads();  // the weights have been read: the next may be written
    }
  }
  const double total = block_sum(squares, scratch);
  if (threadIdx.x == 0) {
    accscalar_t sum = 0;
    for (int64_t d = 0; d < channels; ++d) {
      sum = Norm<kNorm>::accumulate(sum, mean[d]);
    }
    push_sums[blockIdx.x] = total;
    mean_norms[blockIdx.x] = static_cast<double>(Norm<kNorm>::finish(sum));
  }
}

// The same for the usual numbers of channels. A block owns 32 instances of an image, a lane the
// mean of one in registers; the warps share the others, and add up what they found in order. Most
// pairs are too far apart to be pushed, which shows before any root is taken.
template <int kChannels>
__global__ void __launch_bounds__(kPassThreads, kChannels <= 16 ? 2 : 1)
    push_in_registers_kernel(int64_t max_instances, const int64_t* instances, const float* means,
                             double delta_dist, float* push, double* push_sums,
                             double* mean_norms) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);  // [blockDim.x]
  constexpr int kWarps = kPassThreads / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t groups = (max_instances + 31) / 32;
  const int64_t image = blockIdx.x / groups, k = blockIdx.x % groups * 32 + lane;
  const int64_t count = instances[image];
  const float* image_means = means + image * max_instances * kChannels;
  const float margin = static_cast<float>(2.0 * delta_dist);
  const float far = margin * margin * 1.00001f;  // a little more than rounding

  Pixel<kChannels> mean;
  mean.clear();
  if (k < count) {
    mean.load_row(image_means + k * kChannels);
  }
  double gradient[kChannels] = {}, squares = 0.0;
  for (int64_t other = warp; other < count; other += kWarps) {
    Pixel<kChannels> v = mean;
    const float sum = v.subtract(image_means + other * kChannels);
    if (sum > far || other == k || k >= count) {
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

  const auto sum_of_warps = [&](double value) {
    scratch[threadIdx.x] = value;
    __syncthreads();  // all warps' sums are there
    double sum = 0.0;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      sum += scratch[other * 32 + lane];
    }
    __syncthreads();  // they have been read: scratch is free
    return sum;
  };
  const int64_t row = image * max_instances + k;
  const bool writes = warp == 0 && k < max_instances;
  const double factor = push_factor(count);
  const double total = sum_of_warps(squares);
  if (writes) {
    push_sums[row] = total;
    mean_norms[row] = static_cast<double>(Norm<2>::finish(mean.sum_of_squares()));
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const double sum = sum_of_warps(gradient[c]);
    if (writes) {
      push[row * kChannels + c] = static_cast<float>(factor * sum);
    }
  }
}

// Adds values [count] with all threads of a block, in a fixed order, for all of them.
__device__ inline double sum_values(const double* values, int64_t count, double* scratch) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    sum += values[i];
  }
  return block_sum(sum, scratch);
}

struct TermSums {
  const double* variance;  // [B, M] parts of L_var
  const double* push;      // [B, M] squared hinges
  const double* norms;     // [B, M] |mu_k|
};

// A block owns an image.
template <typename accscalar_t>
__global__ void __launch_bounds__(128, 4)
    finish_kernel(TermSums sums, int64_t max_instances, const int64_t* instances, double alpha,
                  double beta, double gamma, accscalar_t* loss, accscalar_t* variance,
                  accscalar_t* distance, accscalar_t* regularization) {
  follow_previous_kernel();
  DISCLOSS_DYNAMIC_SHARED(raw);
  auto* scratch = reinterpret_cast<double*>(raw);
  const int64_t image = blockIdx.x, first = image * max_instances, count = instances[image];
  const double pulled = sum_values(sums.variance + first, count, scratch);
  const double pushed = distance_factor(count) * sum_values(sums.push + first, count, scratch);
  const double norms = sum_values(sums.norms + first, count, scratch);
  if (threadIdx.x == 0) {
    const double regularized = count > 0 ? norms / static_cast<double>(count) : 0.0;
    variance[image] = static_cast<accscalar_t>(pulled);
    distance[image] = static_cast<accscalar_t>(pushed);
    regularization[image] = static_cast<accscalar_t>(regularized);
    loss[image] = static_cast<accscalar_t>(alpha * pulled + beta * pushed + gamma * regularized);
  }
}

}  // namespace discloss::cuda
