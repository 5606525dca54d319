// Which pixels a block works on. All pixels of the batch, image after image, are cut into even
// ranges, one for each block, whatever images they belong to: no block waits for the one that drew
// the largest cloud. A block visits the part of its range that lies in one image, then the next.
#pragma once

#include <algorithm>

#include "common/cuda/portability.cuh"
#include "common/cuda/tuning.h"
#include "common/host_device.h"
#include "common/strides.h"

namespace discloss::cuda {

// One partition of a batch. The passes over it have the same one: what a block of one has read last
// is what the same block of the next, in descending order, reads first, from the L2 cache.
struct BlockRanges {
  int64_t blocks;
  int64_t pixels;  // of a range, the last one excepted
  int64_t total;   // pixels of the batch
};

constexpr int64_t kMinRangePixels = kPassThreads;
constexpr int64_t kMaxRangePixels = 1 << 30;

// At most `blocks` ranges, of whole warps, unless they would be longer than kMaxRangePixels.
inline BlockRanges plan_ranges(int64_t total, int64_t blocks) {
  BlockRanges ranges = {};
  ranges.total = total;
  ranges.pixels =
      std::clamp(ceil_div(ceil_div(total, blocks), 32) * 32, kMinRangePixels, kMaxRangePixels);
  ranges.blocks = ceil_div(total, ranges.pixels);
  return ranges;
}

// For grid-stride loops of warps: first_warp(), then all_warps() further on.
__device__ __forceinline__ int64_t first_warp() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
}
__device__ __forceinline__ int64_t all_warps() {
  return static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
}

// Pixels [begin, end) of an image.
struct ImageRange {
  int64_t image;
  int64_t begin;
  int64_t end;
};

enum class Order { kAscending, kDescending };

// The image that pixel i of the batch lies in: the last that begins at or before it.
__device__ __forceinline__ int64_t image_of(const Images& images, int64_t i) {
  if (images.offsets == nullptr) {
    return i / images.pixels;
  }
  int64_t first = 0, last = images.count;
  while (last - first > 1) {
    const int64_t middle = (first + last) / 2;
    if (images.offsets[middle] <= i) {
      first = middle;
    } else {
      last = middle;
    }
  }
  return first;
}

// Calls visit(ImageRange) for each image that the block's range meets, with all threads of the
// block.
template <Order kOrder = Order::kAscending, typename Visit>
__device__ __forceinline__ void for_each_image(const Images& images, const BlockRanges& ranges,
                                               const Visit& visit) {
  const int64_t first = blockIdx.x * ranges.pixels;
  const int64_t last = first + ranges.pixels < ranges.total ? first + ranges.pixels : ranges.total;
  int64_t left = last - first;
  int64_t image = image_of(images, kOrder == Order::kAscending ? first : last - 1);
  while (left > 0) {
    const int64_t begin = images.begin(image), end = begin + images.size(image);
    ImageRange range = {image, (begin < first ? first : begin) - begin,
                        (end < last ? end : last) - begin};
    if (range.begin < range.end) {
      visit(range);
      left -= range.end - range.begin;
    }
    image += kOrder == Order::kAscending ? 1 : -1;
  }
}

// Calls visit(first pixel, number of pixels) for the tiles of a range.
template <Order kOrder = Order::kAscending, typename Visit>
__device__ __forceinline__ void for_each_tile(const ImageRange& range, int tile_pixels,
                                              const Visit& visit) {
  const auto tiles = static_cast<int>((range.end - range.begin - 1) / tile_pixels + 1);
  for (int n = 0; n < tiles; ++n) {
    const int64_t t = kOrder == Order::kAscending ? n : tiles - 1 - n;
    const int64_t first = range.begin + t * tile_pixels;
    const int64_t left = range.end - first;
    visit(first, left < tile_pixels ? static_cast<int>(left) : tile_pixels);
  }
}

}  // namespace discloss::cuda
