// How a pass is cut into blocks and tiles, on the host: from sizes and the device alone.
#pragma once

#include <algorithm>

#include "common/cuda/portability.cuh"
#include "common/cuda/shares.cuh"
#include "common/cuda/tile.cuh"
#include "gradient_kernels.cuh"
#include "launch.h"
#include "small_kernels.cuh"
#include "sums.cuh"

namespace discloss::cuda {

// What benchmarks/run_on_gpu.sh compares: builds may choose other values.
#ifndef DISCLOSS_TILE_KILOBYTES
#define DISCLOSS_TILE_KILOBYTES 36  // 16 float channels of 512 pixels
#endif
#ifndef DISCLOSS_PIXELS_IN_REGISTERS
#define DISCLOSS_PIXELS_IN_REGISTERS 1  // 0: all channel counts through tiles in shared memory
#endif

#ifndef DISCLOSS_LEAST_BLOCKS_THAT_SHARE
#define DISCLOSS_LEAST_BLOCKS_THAT_SHARE 1  // of a multiprocessor, its memory for their sums
#endif
#ifndef DISCLOSS_SMALL_BATCHES_AT_ONCE
#define DISCLOSS_SMALL_BATCHES_AT_ONCE 1  // 0: a launch a phase for them too
#endif

constexpr int kMaxTilePixels = 512;
constexpr int kMaxTileChannels = 64;
constexpr size_t kTileBytes = DISCLOSS_TILE_KILOBYTES * 1024;
constexpr size_t kReservedSharedBytes = 1024;  // of each block, for the system
constexpr int kIdBlocksPerMultiprocessor = 6;
constexpr int64_t kMinSharePixels = kPassThreads;
constexpr int64_t kMaxSharePixels = 1 << 30;
constexpr int64_t kMinPartialBytes = 1 << 20;
// Of a small batch.
constexpr int64_t kSmallPixels = 1 << 14, kSmallValues = 1 << 18, kSmallImages = 1 << 5;
constexpr int64_t kSmallInstances = 1 << 9, kSmallPairValues = 1 << 17;
constexpr int kLeastMultiprocessors = 2 * kClusterBlocks;  // a small part of a card has no clusters

struct Device {
  int multiprocessors;
  int architecture;  // that the kernels it runs were compiled for, 90 for sm_90: may be less than
                     // its own, where it compiles PTX
  int shared_bytes;  // the most a block may ask for
  int shared_bytes_per_multiprocessor;  // for all blocks that are resident
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// D if passes 2 and 3 have kernels that keep D channels in registers, else 0. Those index a table
// [M, D] in 32 bits.
inline int channels_in_registers(const Batch& batch) {
  const bool known = batch.channels == 8 || batch.channels == 16 || batch.channels == 32;
  const bool kept = batch.norm == 2 && batch.scalar != ScalarType::kFloat64 &&
                    batch.max_instances <= INT32_MAX / 32;
  return DISCLOSS_PIXELS_IN_REGISTERS && known && kept ? static_cast<int>(batch.channels) : 0;
}

// Tiles of at most kTileBytes; `extra_rows` are rows beside the channels.
template <typename accscalar_t>
TileShape plan_tile(int64_t channels, int extra_rows) {
  const int rows = static_cast<int>(std::min<int64_t>(channels, kMaxTileChannels));
  int pixels = kMaxTilePixels;
  while (pixels > 32 && (rows + extra_rows) * pixels * sizeof(accscalar_t) > kTileBytes) {
    pixels /= 2;
  }
  return {pixels, rows, pixels + Vector<accscalar_t>::kSize};
}

// At most `blocks` shares, of whole warps, unless they would be longer than kMaxSharePixels.
inline Shares plan_shares(int64_t total, int64_t blocks) {
  Shares shares = {};
  shares.total = total;
  shares.pixels =
      std::clamp(ceil_div(ceil_div(total, blocks), 32) * 32, kMinSharePixels, kMaxSharePixels);
  shares.blocks = ceil_div(total, shares.pixels);
  return shares;
}

// The most blocks that the sets of partial sums may cost: what the gradient, which is not there
// yet, will take; a quarter of it where they are cleared as a whole. Every image has one set in any
// case.
inline int64_t affordable_blocks(int64_t set_bytes, int64_t embedding_bytes, int64_t images,
                                 bool cleared) {
  const int64_t allowed = std::max(kMinPartialBytes, embedding_bytes / (cleared ? 4 : 1));
  return std::max(allowed / std::max<int64_t>(set_bytes, 1) - images, std::max<int64_t>(images, 1));
}

// The blocks that a multiprocessor has shared memory for.
inline int64_t blocks_in_shared_memory(const Device& device, size_t bytes_of_a_block) {
  return static_cast<int64_t>(static_cast<size_t>(device.shared_bytes_per_multiprocessor) /
                              (bytes_of_a_block + kReservedSharedBytes));
}

// Whether one cluster of blocks works on a batch in one launch (small_kernels.cuh). The pairs of
// instances count too: there are few warps to share them.
inline bool is_small(const Device& device, const Batch& batch) {
  const int64_t images = batch.images.count, channels = batch.channels;
  const int64_t instances = batch.max_instances;
  const bool can = DISCLOSS_SMALL_BATCHES_AT_ONCE && device.architecture >= kFirstWithClusters &&
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
      DISCLOSS_LEAST_BLOCKS_THAT_SHARE <= blocks_in_shared_memory(device, plan.shared_bytes);
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
  plan.shares = plan_shares(batch.pixels, std::min(affordable, blocks));
  return plan;
}

// The shares of pass 2, but for what its sums cost.
template <typename scalar_t>
GradientPlan plan_gradient(const Device& device, const Batch& batch) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  GradientPlan plan = {};
  plan.tile = plan_tile<accscalar_t>(batch.channels, 1);
  const int64_t resident = resident_blocks(channels_in_registers(batch));
  plan.shares = plan_shares(
      batch.pixels, is_small(device, batch) ? kClusterBlocks : device.multiprocessors * resident);
  plan.shared_bytes =
      (plan.tile.channels * plan.tile.pitch + plan.tile.pixels) * sizeof(accscalar_t) +
      plan.tile.pixels * sizeof(int32_t);
  return plan;
}

// 16-byte accesses need an aligned start, aligned lines, and pieces that do not straddle lines; and
// the shares of a batch must begin at whole pieces of each image.
template <typename pointer_t>
Global<pointer_t> global(pointer_t data, const Strides& strides, const Batch& batch) {
  constexpr int64_t kVector = 16 / sizeof(*data);
  const bool along_pixels = strides.pixel == 1;
  const int64_t line = along_pixels ? strides.channel : strides.pixel;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && line % kVector == 0;
  const bool whole = !along_pixels || batch.images.pixels % kVector == 0;
  const bool images_aligned =
      batch.images.offsets == nullptr
          ? batch.images.count < 2 || (whole && strides.image % kVector == 0)
          : !along_pixels;
  return {data, strides, aligned && images_aligned};
}

inline Shares plan_ids(const Device& device, int64_t pixels) {
  return plan_shares(pixels, device.multiprocessors * kIdBlocksPerMultiprocessor);
}

}  // namespace discloss::cuda
