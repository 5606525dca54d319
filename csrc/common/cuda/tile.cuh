// A tile: up to `pixels` consecutive pixels of one image times a chunk of channels, held in shared
// memory as [rows][pitch] accscalar_t. Every pass over the pixels loads tiles, works on a pixel's
// column (one thread a pixel: lanes read neighbouring banks), then either sums the tile's rows by
// slot or writes the tile back. Both memory layouts and all dtypes meet only in load and store.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/cuda/portability.cuh"
#include "common/cuda/tuning.h"
#include "common/strides.h"

namespace discloss::cuda {

// Of 16 bytes: as many loads as the registers have room for.
template <typename scalar_t>
constexpr int kTileBatch = sizeof(scalar_t) == 4 ? 4 : 2;

// One shape for all tiles of a launch.
struct TileShape {
  int pixels;    // T, a power of two
  int channels;  // of a chunk, <= D
  int pitch;     // T and one vector: 16-byte accesses are aligned, and hit different banks where
                 // threads are at one pixel of different rows
};

// A tensor of the batch in global memory, as embeddings and their gradient are.
template <typename pointer_t>
struct Global {
  pointer_t data;
  Strides strides;
  bool vectorized;  // 16-byte accesses are aligned for every tile and chunk
};

// Adjacent elements that are read or written at once, by default 16 bytes.
template <typename scalar_t, int kCount = 16 / sizeof(scalar_t)>
struct alignas(kCount * sizeof(scalar_t)) Vector {
  static constexpr int kSize = kCount;
  scalar_t values[kCount];
};

// By way of uint4, because plain assignments of a Vector may compile to an access for each value.
template <typename V, typename scalar_t>
__device__ __forceinline__ V load_vector(const scalar_t* from) {
  V vector;
  if constexpr (sizeof(V) == sizeof(uint4)) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    memcpy(&vector, &bits, sizeof(bits));
  } else {
    vector = *reinterpret_cast<const V*>(from);
  }
  return vector;
}

template <typename V>
__device__ __forceinline__ uint4 bits_of(const V& vector) {
  static_assert(sizeof(V) == sizeof(uint4));
  uint4 bits;
  memcpy(&bits, &vector, sizeof(bits));
  return bits;
}

template <typename V, typename scalar_t>
__device__ __forceinline__ void store_vector(scalar_t* to, const V& vector) {
  *reinterpret_cast<uint4*>(to) = bits_of(vector);
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

// 16-byte accesses need an aligned start, aligned lines, and vectors that do not straddle lines;
// and the ranges of a batch must begin at whole vectors of each image.
template <typename pointer_t>
Global<pointer_t> global(pointer_t data, const Strides& strides, const Images& images) {
  constexpr int64_t kVector = 16 / sizeof(*data);
  const bool along_pixels = strides.pixel == 1;
  const int64_t line = along_pixels ? strides.channel : strides.pixel;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && line % kVector == 0;
  const bool whole = !along_pixels || images.pixels % kVector == 0;
  const bool images_aligned = images.offsets == nullptr
                                  ? images.count < 2 || (whole && strides.image % kVector == 0)
                                  : !along_pixels;
  return {data, strides, aligned && images_aligned};
}

// What a tile covers.
struct TileRegion {
  int64_t image;
  int64_t first_pixel;
  int pixels;
  int64_t first_channel;
  int channels;
};

// The same in memory.
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
                                                             const Images& images,
                                                             const TileRegion& region) {
  const Strides& s = global.strides;
  return {global.data + images.embedding(region.image, s) + region.first_pixel * s.pixel +
              region.first_channel * s.channel,
          s, global.vectorized, region.channels, region.pixels};
}

struct TileElement {
  int channel;
  int pixel;
};

// The first element of vector j, of those that begin at element `first` of each line, `count` a
// line and `size` elements long. Lines are those of the axis that is contiguous.
__device__ __forceinline__ TileElement element_of_vector(bool along_pixels, int first, int count,
                                                         int size, int j) {
  const int line = j / count, at = first + (j - line * count) * size;
  return {along_pixels ? line : at, along_pixels ? at : line};
}

// Calls visit(channel, pixel, count) for vectors that cover the source, `count` elements adjacent
// in memory at a time: kVector of them where 16-byte accesses are possible, then single ones.
// Adjacent threads get adjacent vectors, along whichever axis is contiguous.
template <int kVector, typename pointer_t, typename Visit>
__device__ __forceinline__ void visit_vectors(const TileSource<pointer_t>& source, Visit visit) {
  const bool along_pixels = source.strides.pixel == 1;
  const int length = along_pixels ? source.pixels : source.channels;
  const int lines = along_pixels ? source.channels : source.pixels;
  const int vectors = source.vectorized ? length / kVector : 0;
  const int singles = length - vectors * kVector;
#pragma unroll 4
  for (int j = threadIdx.x; j < lines * vectors; j += blockDim.x) {
    const TileElement at = element_of_vector(along_pixels, 0, vectors, kVector, j);
    visit(at.channel, at.pixel, kVector);
  }
#pragma unroll 4
  for (int j = threadIdx.x; j < lines * singles; j += blockDim.x) {
    const TileElement at = element_of_vector(along_pixels, vectors * kVector, singles, 1, j);
    visit(at.channel, at.pixel, 1);
  }
}

// A vector into the tile, its elements `step` apart there.
template <typename V, typename accscalar_t>
__device__ __forceinline__ void widen(const V& from, accscalar_t* to, int step) {
  if constexpr (V::kSize == 1) {
    *to = to_accumulate(from.values[0]);
  } else {
    using Wide = Vector<accscalar_t>;
#pragma unroll
    for (int e = 0; e < V::kSize; e += Wide::kSize) {
      Wide wide;
#pragma unroll
      for (int w = 0; w < Wide::kSize; ++w) {
        wide.values[w] = to_accumulate(from.values[e + w]);
      }
      if (step == 1) {
        store_vector(to + e, wide);
      } else {
#pragma unroll
        for (int w = 0; w < Wide::kSize; ++w) {
          to[(e + w) * step] = wide.values[w];
        }
      }
    }
  }
}

// `count` vectors of each line, from element `first` on. kBatch of them are on their way at once:
// the loads of a thread wait for each other if each is followed by its store.
template <typename V, int kBatch, typename scalar_t, typename accscalar_t>
__device__ __forceinline__ void load_vectors(const TileSource<const scalar_t*>& source, int first,
                                             int count, accscalar_t* tile, int pitch) {
  const Strides s = source.strides;
  const bool along_pixels = s.pixel == 1;
  const int total = (along_pixels ? source.channels : source.pixels) * count;
  const auto threads = static_cast<int>(blockDim.x);
  for (int begin = threadIdx.x; begin < total; begin += kBatch * threads) {
    V vectors[kBatch];
    int offsets[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int j = begin + b * threads;
      if (j < total) {
        const auto [channel, pixel] = element_of_vector(along_pixels, first, count, V::kSize, j);
        vectors[b] = load_vector<V>(source.first + channel * s.channel + pixel * s.pixel);
        offsets[b] = channel * pitch + pixel;
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (begin + b * threads < total) {
        widen(vectors[b], tile + offsets[b], along_pixels ? 1 : pitch);
      }
    }
  }
}

template <int kBatch, typename scalar_t, typename accscalar_t>
__device__ __forceinline__ void load_tile(const TileSource<const scalar_t*>& source,
                                          accscalar_t* tile, int pitch) {
  constexpr int kVector = Vector<scalar_t>::kSize;
  const int length = source.strides.pixel == 1 ? source.pixels : source.channels;
  const int vectors = source.vectorized ? length / kVector : 0, in_vectors = vectors * kVector;
  load_vectors<Vector<scalar_t>, kBatch>(source, 0, vectors, tile, pitch);
  load_vectors<Vector<scalar_t, 1>, 1>(source, in_vectors, length - in_vectors, tile, pitch);
}

template <typename scalar_t, typename accscalar_t>
__device__ __forceinline__ void store_tile(const accscalar_t* tile, int pitch,
                                           const TileSource<scalar_t*>& target) {
  constexpr int kVector = Vector<scalar_t>::kSize;
  const Strides s = target.strides;
  const int step = s.pixel == 1 ? 1 : pitch;
  visit_vectors<kVector>(target, [&](int channel, int pixel, int count) {
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
      // A plain assignment compiles to a store for each value here.
      __stwb(reinterpret_cast<uint4*>(to), bits_of(vector));
    }
  });
}

// Channels of the chunk that begins at channel c.
__device__ __forceinline__ int rows_of_chunk(int64_t channels, int64_t c, const TileShape& tile) {
  return channels - c < tile.channels ? static_cast<int>(channels - c) : tile.channels;
}

}  // namespace discloss::cuda
