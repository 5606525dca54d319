// A tile with one row for each pixel, values [pixels, padded], and its way in and out of memory.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// Rows of `channels` elements, one for each pixel. kOne: each row is exactly one vector.
template <typename value_t, bool kOne>
struct Rows {
  static constexpr bool kOneVector = kOne;

  const value_t* data;
  int64_t pitch;
  int64_t channels;
  const value_t* end;  // of the memory that may be read

  // The first channels of the vectors are 0, W, ... < last().
  DISCLOSS_INLINE int64_t last() const { return kOne ? 1 : channels; }

  // W channels from `first`, 0 behind the last channel.
  template <int W>
  DISCLOSS_INLINE auto load(int64_t pixel, int64_t first) const {
    using P = Pack<accumulate_t<value_t>, W>;
    const value_t* from = data + pixel * pitch + first;
    if (kOne || first + W <= channels) {
      return DISCLOSS_CPU_TARGET::load<W>(from);
    }
    return select(first_lanes<P>(channels - first), load_before<W>(from, end),
                  P(accumulate_t<value_t>(0)));
  }
};

template <bool kOne, typename scalar_t>
DISCLOSS_INLINE Rows<scalar_t, kOne> rows_of_memory(Pixels<scalar_t> pixels) {
  return {pixels.embeddings, pixels.pixel_stride, pixels.channels, pixels.end};
}

// W: the channels of a vector; the tile is 0 behind the last channel.
template <bool kOne, int W, typename T>
DISCLOSS_INLINE Rows<T, kOne> rows_of_tile(Tile<T> tile) {
  return {tile.values, tile.padded, (tile.channels + W - 1) / W * W, nullptr};
}

// Rows of the gradient, one for each pixel. kWhole: each has room for whole vectors. That is a
// matter of where they are written, whatever rows the embeddings are read from.
template <typename result_t, bool kWhole>
struct GradientRows {
  result_t* data;
  int64_t pitch;
  int64_t channels;

  template <typename P>
  DISCLOSS_INLINE void store(int64_t pixel, int64_t first, P values) const {
    result_t* to = data + pixel * pitch + first;
    if (kWhole) {
      DISCLOSS_CPU_TARGET::store(to, values);
    } else {
      store_first(to, values, channels - first);
    }
  }
};

template <typename T>
DISCLOSS_INLINE T* row_of(Tile<T> tile, int64_t i) {
  return tile.values + i * tile.padded;
}

// Channels-first memory into the tile, W x W elements at a time; 0 behind the last channel.
template <int W, typename scalar_t, typename T>
DISCLOSS_OUTLINE void load_transposed(Pixels<scalar_t> pixels, Tile<T> tile) {
  using P = Pack<T, W>;
  for (int64_t first = 0; first < tile.channels; first += W) {
    for (int64_t i = 0; i < tile.pixels; i += W) {
      const scalar_t* x = pixels.embeddings + first * pixels.channel_stride + i;
      const bool whole = first + W <= tile.channels && i + W <= tile.pixels;
      P block[W];
#pragma GCC unroll 16
      for (int c = 0; c < W; ++c) {
        prefetch(x + kPixelsAhead);
        block[c] = whole                       ? load<W>(x)
                   : first + c < tile.channels ? load_before<W>(x, pixels.end)
                                               : P(T(0));
        x += pixels.channel_stride;
      }
      transpose(block);
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        store(row_of(tile, i + p) + first, block[p]);
      }
    }
  }
}

// The tile into channels-first memory.
template <int W, typename scalar_t, typename T>
DISCLOSS_OUTLINE void store_transposed(Tile<T> tile, GradientPixels<scalar_t> out) {
  for (int64_t first = 0; first < tile.channels; first += W) {
    for (int64_t i = 0; i < tile.pixels; i += W) {
      Pack<T, W> block[W];
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        block[p] = load<W>(row_of(tile, i + p) + first);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int c = 0; c < W; ++c) {
        if (first + c < tile.channels) {
          scalar_t* gradient = out.gradient + (first + c) * out.channel_stride + i;
          prefetch(gradient + kPixelsAhead);
          store_first(gradient, block[c], tile.pixels - i);
        }
      }
    }
  }
}

// Channels-last memory into the tile, where only one of embeddings and gradient lies so.
template <int W, typename scalar_t, typename T>
DISCLOSS_OUTLINE void load_rows(Pixels<scalar_t> pixels, Tile<T> tile) {
  const auto rows = rows_of_memory<false>(pixels);
  for (int64_t i = 0; i < tile.pixels; ++i) {
    for (int64_t first = 0; first < tile.channels; first += W) {
      store(row_of(tile, i) + first, rows.template load<W>(i, first));
    }
  }
}

// The tile into channels-last memory.
template <int W, typename scalar_t, typename T>
DISCLOSS_OUTLINE void store_rows(Tile<T> tile, GradientPixels<scalar_t> out) {
  const GradientRows<scalar_t, false> rows = {out.gradient, out.pixel_stride, tile.channels};
  for (int64_t i = 0; i < tile.pixels; ++i) {
    for (int64_t first = 0; first < tile.channels; first += W) {
      rows.store(i, first, load<W>(static_cast<const T*>(row_of(tile, i) + first)));
    }
  }
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
