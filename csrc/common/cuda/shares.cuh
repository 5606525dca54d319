// Which pixels a block works on. All pixels of the batch, image after image, are cut into even
// shares, one for each block, whatever images they belong to: no block waits for the one that drew
// the largest cloud. A block visits the stretches of its share that lie in one image in turn.
#pragma once

#include "loss/cuda/launch.h"
#include "loss/loss_math.h"
#include "portability.cuh"

namespace discloss::cuda {

constexpr int kPassThreads = 256;  // of a block of a pass over the pixels

#ifndef DISCLOSS_BLOCKS_PER_MULTIPROCESSOR
#define DISCLOSS_BLOCKS_PER_MULTIPROCESSOR 3
#endif

// The blocks of a pass over the pixels that a multiprocessor is to hold at once, which leaves a
// thread 80 registers; those of kernels that hold 32 channels in registers need more.
DISCLOSS_HOST_DEVICE constexpr int resident_blocks(int64_t channels_in_registers) {
  return channels_in_registers < 32 ? DISCLOSS_BLOCKS_PER_MULTIPROCESSOR : 2;
}

// One partition of a batch. The passes over it have the same one: what a block of one has read last
// is what the same block of the next, walking backwards, reads first, from the L2 cache.
struct Shares {
  int64_t blocks;
  int64_t pixels;  // of a share, the last one excepted
  int64_t total;   // pixels of the batch
};

enum class Walk { kForwards, kBackwards };

// For work that is shared among all warps of a launch.
__device__ __forceinline__ int64_t first_warp() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
}
__device__ __forceinline__ int64_t all_warps() {
  return static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
}

// Pixels [begin, end) of an image.
struct Stretch {
  int64_t image;
  int64_t begin;
  int64_t end;
};

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

// Calls visit(stretch) for each stretch of a block's share, with all threads of the block.
template <Walk kWalk = Walk::kForwards, typename Visit>
__device__ __forceinline__ void for_each_stretch(const Images& images, const Shares& shares,
                                                 const Visit& visit) {
  const int64_t first = blockIdx.x * shares.pixels;
  const int64_t last = first + shares.pixels < shares.total ? first + shares.pixels : shares.total;
  int64_t left = last - first;
  int64_t image = image_of(images, kWalk == Walk::kForwards ? first : last - 1);
  while (left > 0) {
    const int64_t begin = images.begin(image), end = begin + images.size(image);
    Stretch stretch = {image, (begin < first ? first : begin) - begin,
                       (end < last ? end : last) - begin};
    if (stretch.begin < stretch.end) {
      visit(stretch);
      left -= stretch.end - stretch.begin;
    }
    image += kWalk == Walk::kForwards ? 1 : -1;
  }
}

// Calls visit(first pixel, number of pixels) for the tiles of a stretch.
template <Walk kWalk = Walk::kForwards, typename Visit>
__device__ __forceinline__ void for_each_tile(const Stretch& stretch, int tile_pixels,
                                              const Visit& visit) {
  const auto tiles = static_cast<int>((stretch.end - stretch.begin - 1) / tile_pixels + 1);
  for (int n = 0; n < tiles; ++n) {
    const int64_t t = kWalk == Walk::kForwards ? n : tiles - 1 - n;
    const int64_t first = stretch.begin + t * tile_pixels;
    const int64_t left = stretch.end - first;
    visit(first, left < tile_pixels ? static_cast<int>(left) : tile_pixels);
  }
}

}  // namespace discloss::cuda
