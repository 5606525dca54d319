// A tile: up to `pixels` consecutive pixels of one image times a chunk of channels, held in shared
// memory as [rows][pitch] accscalar_t. Every pass over the pixels loads tiles, works on a pixel's
// column (one thread a pixel: lanes read neighbouring banks), then either sums the tile's rows by
// slot or writes the tile back. Both memory layouts and all dtypes meet only in load and store.
#pragma once

#include <cstring>

#include "launch.h"
#include "portability.cuh"

namespace discloss::cuda {

// One shape for all tiles of a launch.
struct TileShape {
  int pixels;    // T
  int channels;  // of a chunk, <= D
  int pitch;     // T + 1: threads that walk different rows at the same pixel hit different banks
};

// Embeddings or gradient in global memory.
template <typename pointer_t>
struct Global {
  pointer_t data;
  Strides strides;
  bool vectorized;  // 16-byte accesses are aligned for every tile and chunk
};

template <typename scalar_t>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(scalar_t);
  scalar_t values[kSize];
};

// The part of an image that a tile covers.
template <typename pointer_t>
struct TileSource {
  pointer_t first;  // channel 0 of the chunk at the tile's first pixel
  Strides strides;
  bool vectorized;
  int channels;
  int pixels;
};

template <typename pointer_t>
__device__ __forceinline__ TileSource<pointer_t> tile_source(const Global<pointer_t>& global,
                                                             const Images& images, int64_t image,
                                                             int64_t first_pixel, int pixels,
                                                             int64_t first_channel, int channels) {
  const Strides& s = global.strides;
  return {
      global.data + images.embedding(image, s) + first_pixel * s.pixel + first_channel * s.channel,
      s, global.vectorized, channels, pixels};
}

// Calls visit(channel, pixel, count) for pieces that cover the source, `count` elements adjacent in
// memory at a time: kVector of them where 16-byte accesses are possible, then single ones. Adjacent
// threads get adjacent pieces, along whichever axis is contiguous.
template <int kVector, typename pointer_t, typename Visit>
__device__ __forceinline__ void visit_pieces(const TileSource<pointer_t>& source, Visit visit) {
  const bool along_pixels = source.strides.pixel == 1;
  const int length = along_pixels ? source.pixels : source.channels;
  const int lines = along_pixels ? source.channels : source.pixels;
  const int vectors = source.vectorized ? length / kVector : 0;
  const int singles = length - vectors * kVector;
#pragma unroll 4
  for (int j = threadIdx.x; j < lines * vectors; j += blockDim.x) {
    const int line = j / vectors, at = (j - line * vectors) * kVector;
    visit(along_pixels ? line : at, along_pixels ? at : line, kVector);
  }
#pragma unroll 4
  for (int j = threadIdx.x; j < lines * singles; j += blockDim.x) {
    const int line = j / singles, at = vectors * kVector + (j - line * singles);
    visit(along_pixels ? line : at, along_pixels ? at : line, 1);
  }
}

template <typename scalar_t, typename accscalar_t>
__device__ __forceinline__ void load_tile(const TileSource<const scalar_t*>& source,
                                          accscalar_t* tile, int pitch) {
  constexpr int kVector = Vector<scalar_t>::kSize;
  const Strides s = source.strides;
  const int step = s.pixel == 1 ? 1 : pitch;  // between adjacent elements, in the tile
  visit_pieces<kVector>(source, [&](int channel, int pixel, int count) {
    const scalar_t* from = source.first + channel * s.channel + pixel * s.pixel;
    accscalar_t* to = tile + channel * pitch + pixel;
    if (count == 1) {
      *to = to_accumulate(*from);
    } else {
      const auto vector = *reinterpret_cast<const Vector<scalar_t>*>(from);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        to[e * step] = to_accumulate(vector.values[e]);
      }
    }
  });
}

template <typename scalar_t, typename accscalar_t>
__device__ __forceinline__ void store_tile(const accscalar_t* tile, int pitch,
                                           const TileSource<scalar_t*>& target) {
  constexpr int kVector = Vector<scalar_t>::kSize;
  const Strides s = target.strides;
  const int step = s.pixel == 1 ? 1 : pitch;
  visit_pieces<kVector>(target, [&](int channel, int pixel, int count) {
    const accscalar_t* from = tile + channel * pitch + pixel;
    scalar_t* to = target.first + channel * s.channel + pixel * s.pixel;
    if (count == 1) {
      *to = round_to<scalar_t>(*from);
    } else {
      Vector<scalar_t> vector;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        vector.values[e] = round_to<scalar_t>(from[e * step]);
      }
      uint4 bits;
      memcpy(&bits, &vector, sizeof(bits));
      // A plain assignment compiles to a store for each value.
      __stwb(reinterpret_cast<uint4*>(to), bits);
    }
  });
}

// The tiles of a block: blocks_per_image blocks share an image's tiles, each a contiguous range.
struct TileRange {
  int64_t image;
  int64_t part;   // of the image
  int64_t first;  // tile
  int64_t last;   // one behind
};

__device__ __forceinline__ TileRange tile_range(const Images& images, int64_t blocks_per_image,
                                                int tile_pixels) {
  const int64_t image = blockIdx.x / blocks_per_image;
  const int64_t part = blockIdx.x % blocks_per_image;
  const int64_t tiles = (images.size(image) + tile_pixels - 1) / tile_pixels;
  return {image, part, part * tiles / blocks_per_image, (part + 1) * tiles / blocks_per_image};
}

__device__ __forceinline__ int pixels_of_tile(const Images& images, int64_t image, int64_t tile,
                                              int tile_pixels) {
  const int64_t left = images.size(image) - tile * tile_pixels;
  return left < tile_pixels ? static_cast<int>(left) : tile_pixels;
}

// Channels of the chunk that begins at channel c.
__device__ __forceinline__ int rows_of_chunk(int64_t channels, int64_t c, const TileShape& tile) {
  return channels - c < tile.channels ? static_cast<int>(channels - c) : tile.channels;
}

}  // namespace discloss::cuda
