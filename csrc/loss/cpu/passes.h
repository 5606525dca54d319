// The passes over the pixels of a range, tile by tile, each tile in the layout that suits it.
#pragma once

#include "channel_major.h"
#include "channel_sums.h"
#include "channels_in_registers.h"
#include "pixel_major.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// Where an embedding fills only half a vector, the vectors of channels are half as long, but never
// less than 16 bytes.
template <typename T>
inline constexpr int kFewLanes = kLanes<T> * sizeof(T) > 16 ? kLanes<T> / 2 : kLanes<T>;

// Whether passes with vectors of W channels are called for so many.
template <typename T, int W>
constexpr bool takes(int64_t channels) {
  return W < kLanes<T> ? channels <= W : kFewLanes<T> == W || channels > kFewLanes<T>;
}

// Shorter runs than this, on average, cost more as vectors of pixels than a transposition does
// (measured where D = 16); for the gradient, which is transposed twice, that is later.
constexpr int64_t kLongRun = 16;
constexpr int64_t kLongRunOfGradient = 6;

// Where all channels stay in registers, shorter runs are worth it too.
constexpr int64_t kLongRunInRegisters = 6;

// Shorter runs than this, on average, cost more in pass 1 than their pixels do one by one. In the
// other passes only runs that are worth being vectors of pixels are.
constexpr int64_t kShortRun = 3;

template <typename scalar_t>
DISCLOSS_INLINE Pixels<scalar_t> part_of(const Pixels<scalar_t>& pixels, int64_t begin,
                                         int64_t count) {
  Pixels<scalar_t> part = pixels;
  part.embeddings += begin * pixels.pixel_stride;
  part.slots += begin;
  part.count = count;
  return part;
}

// Calls body(pixels of a tile, Tile, number of its first pixel). Finds the runs of tiles in which
// they have `shortest` pixels on average.
template <typename scalar_t, typename Body>
DISCLOSS_INLINE void for_each_tile(const Pixels<scalar_t>& pixels,
                                   const Scratch<accumulate_t<scalar_t>>& scratch, int64_t shortest,
                                   const Body& body) {
  const int64_t step = tile_pixels(pixels.channels);
  constexpr int64_t W = kLanes<accumulate_t<scalar_t>>;
  const int64_t whole = pixels.count / W * W;
  int64_t count = 0;
  for (int64_t begin = 0; begin < pixels.count; begin += count) {
    const int64_t left = (begin < whole ? whole : pixels.count) - begin;
    count = left < step ? left : step;
    const int64_t run_count = count_runs(pixels.slots + begin, count);
    const bool singly = run_count * shortest > count;
    if (!singly) {
      find_runs(pixels.slots + begin, count, scratch.runs);
    }
    const Tile<accumulate_t<scalar_t>> tile = {scratch.values,
                                               scratch.scales,
                                               scratch.squares,
                                               pixels.slots + begin,
                                               scratch.runs,
                                               run_count,
                                               singly,
                                               count,
                                               pixels.channels,
                                               padded_channels(pixels.channels),
                                               tile_pitch(pixels.channels)};
    body(part_of(pixels, begin, count), tile, begin);
  }
}

// Whether a tile is taken as vectors of pixels.
template <typename scalar_t, typename T>
DISCLOSS_INLINE bool by_channel(Pixels<scalar_t> pixels, Tile<T> tile, int64_t long_run) {
  return pixels.pixel_stride == 1 && tile.pixels % kLanes<T> == 0 &&
         tile.run_count * long_run <= tile.pixels;
}

// Calls body(number of channels, as a type), if they stay in registers. Returns whether they do.
template <typename T, int W, typename Body>
DISCLOSS_INLINE bool with_channels(int64_t channels, const Body& body) {
  if constexpr (takes<T, W>(8)) {
    if (channels == 8) {
      body(std::integral_constant<int, 8>{});
      return true;
    }
  }
  if constexpr (takes<T, W>(16)) {
    if (channels == 16) {
      body(std::integral_constant<int, 16>{});
      return true;
    }
  }
  return false;
}

// The shortest runs that passes 1 and 2 take as vectors of pixels.
template <int W, typename scalar_t>
DISCLOSS_INLINE int64_t long_run_of(const Pixels<scalar_t>& pixels) {
  using T = accumulate_t<scalar_t>;
  const bool in_registers = with_channels<T, W>(pixels.channels, [](auto) {});
  return in_registers && pixels.pixel_stride == 1 ? kLongRunInRegisters : kLongRun;
}

// Calls body(rows) with the rows of a tile.
template <int W, typename T, typename Body>
DISCLOSS_INLINE void with_rows_of_tile(Tile<T> tile, const Body& body) {
  if constexpr (takes<T, W>(W + 1)) {
    if (tile.channels > W) {
      body(rows_of_tile<false, W>(tile));
      return;
    }
  }
  body(rows_of_tile<true, W>(tile));
}

// Calls body(rows) with the pixels of a tile, pixel-major: as they lie in memory, or transposed.
template <int W, typename scalar_t, typename T, typename Body>
DISCLOSS_INLINE void with_rows(Pixels<scalar_t> pixels, Tile<T> tile, const Body& body) {
  if (pixels.pixel_stride == 1) {
    load_transposed<W>(pixels, tile);
    with_rows_of_tile<W>(tile, body);
  } else if (pixels.channels == W) {
    body(rows_of_memory<true>(pixels));
  } else {
    body(rows_of_memory<false>(pixels));
  }
}

// Pass 1, in which no norm is taken.
template <typename scalar_t, int W>
void add_sums(const Pixels<scalar_t>& pixels, const Scratch<accumulate_t<scalar_t>>& scratch,
              int64_t* counts, double* sums) {
  using T = accumulate_t<scalar_t>;
  using ByPixel = PixelMajor<T, 2, W>;
  for_each_tile(pixels, scratch, kShortRun, [&](auto part, auto tile, int64_t) {
    if (tile.singly) {
      with_rows<W>(part, tile,
                   [&](auto rows) { ByPixel::add_sums_singly(rows, tile, counts, sums); });
      return;
    }
    for_each_run(tile, [&](int64_t, Run run) { counts[run.slot] += run.end - run.begin; });
    if (by_channel(part, tile, kLongRun)) {
      sum_channels(part, tile);
      add_channel_sums<T, W>(tile, sums);
    } else if (by_channel(part, tile, long_run_of<W>(pixels))) {
      with_channels<T, W>(part.channels, [&](auto channels) {
        ChannelsInRegisters<scalar_t, 2, channels()>::add_sums(part, tile, sums);
      });
    } else {
      with_rows<W>(part, tile, [&](auto rows) { ByPixel::add_sums(rows, tile, sums); });
    }
  });
}

// Pass 2.
template <typename scalar_t, int kNorm, int W>
void add_pull(const Pixels<scalar_t>& pixels, const Scratch<accumulate_t<scalar_t>>& scratch,
              const accumulate_t<scalar_t>* means, accumulate_t<scalar_t> delta_var,
              const HingeSums& sums) {
  using T = accumulate_t<scalar_t>;
  using ByPixel = PixelMajor<T, kNorm, W>;
  const int64_t long_run = long_run_of<W>(pixels);
  for_each_tile(pixels, scratch, long_run, [&](auto part, auto tile, int64_t) {
    if (by_channel(part, tile, long_run)) {
      const bool done = with_channels<T, W>(part.channels, [&](auto channels) {
        ChannelsInRegisters<scalar_t, kNorm, channels()>::add_pull(part, tile, means, delta_var,
                                                                   sums);
      });
      if (!done) {
        load_and_find_hinges<scalar_t, kNorm>(part, tile, means, delta_var);
        add_pull_by_channel<T, kNorm, W>(tile, means, sums);
      }
      return;
    }
    with_rows<W>(part, tile, [&](auto rows) {
      ByPixel::find_hinges(rows, tile, means, delta_var);
      if (tile.singly) {
        ByPixel::add_pull_singly(rows, tile, means, sums);
      } else {
        ByPixel::add_pull(rows, tile, means, sums);
      }
    });
  });
}

// The gradient of a tile whose channels are rows, in memory too.
template <int kNorm, int W, typename scalar_t, typename T>
DISCLOSS_INLINE void write_channels(Pixels<scalar_t> pixels, Tile<T> tile,
                                    const GradientTables<T>& tables, T delta,
                                    GradientPixels<scalar_t> out, bool backwards) {
  const bool done = with_channels<T, W>(pixels.channels, [&](auto channels) {
    ChannelsInRegisters<scalar_t, kNorm, channels()>::write_gradient(pixels, tile, tables, delta,
                                                                     out, backwards);
  });
  if (!done) {
    load_and_find_hinges<scalar_t, kNorm>(pixels, tile, tables.means, delta);
    write_gradient_by_channel<scalar_t, kNorm>(tile, tables, out);
  }
}

// The gradient of a tile whose pixels are rows, in memory too.
template <int kNorm, int W, typename scalar_t, typename T>
DISCLOSS_INLINE void write_rows(Pixels<scalar_t> pixels, Tile<T> tile,
                                const GradientTables<T>& tables, T delta,
                                GradientPixels<scalar_t> out) {
  using ByPixel = PixelMajor<T, kNorm, W>;
  const GradientRows<scalar_t, true> whole = {out.gradient, out.pixel_stride, pixels.channels};
  if (pixels.channels == W) {
    ByPixel::find_and_write_gradient(rows_of_memory<true>(pixels), tile, tables, delta, whole);
    return;
  }
  const auto rows = rows_of_memory<false>(pixels);
  if constexpr (takes<T, W>(2 * W)) {
    if (pixels.channels % W == 0) {
      ByPixel::find_and_write_gradient(rows, tile, tables, delta, whole);
      return;
    }
  }
  const GradientRows<scalar_t, false> cut = {out.gradient, out.pixel_stride, pixels.channels};
  ByPixel::find_and_write_gradient(rows, tile, tables, delta, cut);
}

// The gradient of a tile by way of its rows, however embeddings and gradient lie in memory.
template <int kNorm, int W, typename scalar_t, typename T>
DISCLOSS_INLINE void write_by_tile(Pixels<scalar_t> pixels, Tile<T> tile,
                                   const GradientTables<T>& tables, T delta,
                                   GradientPixels<scalar_t> out) {
  if (pixels.pixel_stride == 1) {
    load_transposed<W>(pixels, tile);
  } else {
    load_rows<W>(pixels, tile);
  }
  with_rows_of_tile<W>(tile, [&](auto rows) {
    const GradientRows<T, true> gradient = {tile.values, tile.padded, tile.channels};
    PixelMajor<T, kNorm, W>::find_and_write_gradient(rows, tile, tables, delta, gradient);
  });
  if (out.pixel_stride == 1) {
    store_transposed<W>(tile, out);
  } else {
    store_rows<W>(tile, out);
  }
}

// Pass 3.
template <typename scalar_t, int kNorm, int W>
void write_gradient(const Pixels<scalar_t>& pixels,
                    const GradientTables<accumulate_t<scalar_t>>& tables,
                    accumulate_t<scalar_t> delta_var,
                    const Scratch<accumulate_t<scalar_t>>& scratch,
                    const GradientPixels<scalar_t>& gradient) {
  const bool to_channels = gradient.pixel_stride == 1;
  const bool backwards = better_backwards(pixels, gradient.gradient);
  for_each_tile(pixels, scratch, kLongRunOfGradient, [&](auto part, auto tile, int64_t begin) {
    GradientPixels<scalar_t> out = gradient;
    out.gradient += begin * gradient.pixel_stride;
    if (to_channels && by_channel(part, tile, kLongRunOfGradient)) {
      write_channels<kNorm, W>(part, tile, tables, delta_var, out, backwards);
    } else if (!to_channels && part.pixel_stride != 1) {
      write_rows<kNorm, W>(part, tile, tables, delta_var, out);
    } else {
      write_by_tile<kNorm, W>(part, tile, tables, delta_var, out);
    }
  });
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
