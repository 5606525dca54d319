// How a pass is cut into blocks and tiles, and which kernels it takes, on the host: from sizes and
// the device alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/cuda/launching.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/cuda/tile.cuh"
#include "common/cuda/tuning.h"
#include "gradient_kernels.cuh"
#include "launch.h"
#include "loss/loss_math.h"
#include "sums.cuh"

namespace discloss::cuda {

constexpr int64_t kMinPartialBytes = 1 << 20;
// Of a small batch.
constexpr int64_t kSmallPixels = 1 << 14, kSmallValues = 1 << 18, kSmallImages = 1 << 5;
constexpr int64_t kSmallInstances = 1 << 9, kSmallPairValues = 1 << 17;
constexpr int kLeastMultiprocessors = 2 * kClusterBlocks;  // a small part of a card has no clusters

// D if passes 2 and 3 have kernels that hold D channels in registers, else 0. Those index a table
// [M, D] in 32 bits.
inline int channels_in_registers(const Batch& batch) {
  const bool known = batch.channels == 8 || batch.channels == 16 || batch.channels == 32;
  const bool usual = batch.norm == 2 && batch.scalar != ScalarType::kFloat64 &&
                     batch.max_instances <= INT32_MAX / 32;
  return kPixelsInRegisters && known && usual ? static_cast<int>(batch.channels) : 0;
}

// The most blocks that the sets of partial sums may cost: what the gradient, which is not there
// yet, will take; a quarter of it where they are cleared as a whole. Every image has one set in any
// case.
inline int64_t affordable_blocks(int64_t set_bytes, int64_t embedding_bytes, int64_t images,
                                 bool cleared) {
  const int64_t allowed = std::max(kMinPartialBytes, embedding_bytes / (cleared ? 4 : 1));
  return std::max(allowed / std::max<int64_t>(set_bytes, 1) - images, std::max<int64_t>(images, 1));
}

// Whether one cluster of blocks works on a batch in one launch (small_kernels.cuh). The pairs of
// instances count too: there are few warps to share them.
inline bool is_small(const Device& device, const Batch& batch) {
  const int64_t images = batch.images.count, channels = batch.channels;
  const int64_t instances = batch.max_instances;
  const bool can = kSmallBatchesInOneLaunch && device.architecture >= kFirstWithClusters &&
                   device.multiprocessors >= kLeastMultiprocessors;
  const bool usual = batch.norm == 2 && batch.scalar != ScalarType::kFloat64;
  const bool few_pixels = batch.pixels > 0 && batch.pixels <= kSmallPixels &&
                          batch.pixels * channels <= kSmallValues && images <= kSmallImages;
  return can && usual && few_pixels && instances <= kSmallInstances / images &&
         images * instances * instances * channels <= kSmallPairValues;
}

// All blocks are resident at once. small: they are one cluster.
template <typename scalar_t>
SumPlan plan_sums(const Device& device, const Batch& batch, bool small) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  SumPlan plan = {};
  plan.tile = plan_tile<accscalar_t>(batch.channels, 2);
  plan.lanes = 8;
  while (plan.lanes < 32 && plan.lanes < plan.tile.channels + 1) {
    plan.lanes *= 2;
  }
  const int64_t set = batch.max_instances * (batch.channels + 1);
  const int64_t set_bytes = set * static_cast<int64_t>(sizeof(double));
  plan.shared_bytes = sum_shared_bytes<accscalar_t>(plan.tile, set);
  plan.shared_accumulators =
      plan.shared_bytes <= static_cast<size_t>(device.shared_bytes) &&
      kMinBlocksWithSharedSums <= blocks_in_shared_memory(device, plan.shared_bytes);
  plan.lazily_cleared = !plan.shared_accumulators && batch.channels <= plan.tile.channels;
  if (!plan.shared_accumulators) {
    plan.shared_bytes = sum_shared_bytes<accscalar_t>(plan.tile, 0);
  }
  const int64_t resident = std::clamp<int64_t>(blocks_in_shared_memory(device, plan.shared_bytes),
                                               1, resident_blocks(channels_in_registers(batch)));
  const int64_t affordable =
      affordable_blocks(set_bytes, batch.pixels * batch.channels * sizeof(scalar_t),
                        batch.images.count, !plan.shared_accumulators && !plan.lazily_cleared);
  const int64_t blocks = small ? kClusterBlocks : device.multiprocessors * resident;
  plan.ranges = plan_ranges(batch.pixels, std::min(affordable, blocks));
  return plan;
}

// The ranges of pass 2, but for what its sums cost.
template <typename scalar_t>
GradientPlan plan_gradient(const Device& device, const Batch& batch) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  GradientPlan plan = {};
  plan.tile = plan_tile<accscalar_t>(batch.channels, 1);
  const int64_t resident = resident_blocks(channels_in_registers(batch));
  plan.ranges = plan_ranges(
      batch.pixels, is_small(device, batch) ? kClusterBlocks : device.multiprocessors * resident);
  plan.shared_bytes =
      (plan.tile.channels * plan.tile.pitch + plan.tile.pixels) * sizeof(accscalar_t) +
      plan.tile.pixels * sizeof(int32_t);
  return plan;
}

// --- which of the kernels ------------------------------------------------------------------------

template <typename Function>
cudaError_t dispatch_norm(int norm, Function function) {
  return norm == 1 ? function(Norm<1>{}) : function(Norm<2>{});
}

template <int kNorm>
constexpr int norm_of(Norm<kNorm>) {
  return kNorm;
}

// Calls function(channels_in_registers, as a type), or function(0) where the rows of a table [B, M,
// D] may not be read 16 bytes at a time.
template <typename scalar_t, int kNorm, typename Function>
cudaError_t dispatch_channels(const Batch& batch, const void* table, Function function) {
  if constexpr (kNorm == 2 && !std::is_same_v<scalar_t, double>) {
    const bool aligned = reinterpret_cast<uintptr_t>(table) % 16 == 0;
    switch (aligned ? channels_in_registers(batch) : 0) {
      case 8:
        return function(std::integral_constant<int, 8>{});
      case 16:
        return function(std::integral_constant<int, 16>{});
      case 32:
        return function(std::integral_constant<int, 32>{});
    }
  }
  return function(std::integral_constant<int, 0>{});
}

}  // namespace discloss::cuda
