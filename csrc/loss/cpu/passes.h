// The passes over the pixels of a range, tile by tile, each tile in the layout that suits it.
#pragma once

#include "channel_major.h"
#include "pixel_major.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// Shorter runs than this, on average, cost more as vectors of pixels than a transposition does
// (measured where D = 16); for the gradient, which is transposed twice, that is later.
constexpr int64_t kLongRun = 16;
constexpr int64_t kLongRunOfGradient = 6;

// Where all channels stay in registers, shorter runs are worth it too.
constexpr int64_t kLongRunOfBlocks = 6;

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

// Calls body(number of channels, as a type), if it is one that passes are compiled for. Returns
// whether it is.
template <int kRows, typename Body>
DISCLOSS_INLINE bool with_channels(int64_t channels, const Body& body) {
  if constexpr (kRows <= 8) {
    if (channels == 8) {
      body(std::integral_constant<int, 8>{});
      return true;
    }
  }
  if (channels == 16) {
    body(std::integral_constant<int, 16>{});
    return true;
  }
  return false;
}

// The shortest runs that passes 1 and 2 take as vectors of pixels.
template <int kRows, typename scalar_t>
DISCLOSS_INLINE int64_t long_run_of(const Pixels<scalar_t>& pixels) {
  const bool compiled = with_channels<kRows>(pixels.channels, [](auto) {});
  return compiled && pixels.pixel_stride == 1 ? kLongRunOfBlocks : kLongRun;
}

// Calls body(rows) with the pixels of a tile, pixel-major: as they lie in memory, or transposed.
template <typename ByPixel, typename scalar_t, typename T, typename Body>
DISCLOSS_INLINE void with_rows(Pixels<scalar_t> pixels, Tile<T> tile, const Body& body) {
  if (pixels.pixel_stride != 1) {
    if (pixels.channels == ByPixel::kLanesOfRow) {
      body(ByPixel::template rows_of_memory<true>(pixels));
    } else {
      body(ByPixel::template rows_of_memory<false>(pixels));
    }
  } else {
    ByPixel::load_transposed(pixels, tile);
    if (pixels.channels <= ByPixel::kLanesOfRow) {
      body(ByPixel::template rows_of_tile<true>(tile));
    } else {
      body(ByPixel::template rows_of_tile<false>(tile));
    }
  }
}

// Calls body(run) for the runs that are not ignored.
template <typename T, typename Body>
DISCLOSS_INLINE void for_each_run(Tile<T> tile, const Body& body) {
  for (int64_t r = 0; r < tile.run_count; ++r) {
    const Run run = tile.runs[r];
    if (run.slot >= 0) {
      body(run);
    }
  }
}

// Pass 1, in which no norm is taken.
template <typename scalar_t, int W>
void add_sums(const Pixels<scalar_t>& pixels, const Scratch<accumulate_t<scalar_t>>& scratch,
              int64_t* counts, double* sums) {
  using ByChannel = ChannelMajor<scalar_t, 2, W>;
  using ByPixel = PixelMajor<scalar_t, 2, W>;
  for_each_tile(pixels, scratch, kShortRun, [&](auto part, auto tile, int64_t) {
    if (tile.singly) {
      with_rows<ByPixel>(part, tile,
                         [&](auto rows) { ByPixel::add_sums_singly(rows, tile, counts, sums); });
      return;
    }
    for_each_run(tile, [&](Run run) { counts[run.slot] += run.end - run.begin; });
    if (by_channel(part, tile, kLongRun)) {
      ByChannel::add_sums(part, tile, sums);
    } else if (by_channel(part, tile, long_run_of<W>(pixels))) {
      with_channels<W>(part.channels, [&](auto channels) {
        ByChannel::template add_sums_of_blocks<channels()>(part, tile, sums);
      });
    } else {
      with_rows<ByPixel>(part, tile, [&](auto rows) {
        for_each_run(tile,
                     [&](Run run) { ByPixel::add_sums(rows, run, sums + run.slot * tile.padded); });
      });
    }
  });
}

// squares += sum over the run of h_i^2; returns whether any pixel is outside its margin. The square
// of a small hinge may be 0.
template <typename T>
DISCLOSS_INLINE bool add_squares(Tile<T> tile, Run run, double* squares) {
  const double sum = sum_over_run(tile.squares, run);
  squares[run.slot] += sum;
  return sum != 0 || sum_over_run(tile.scales, run) != 0;
}

// Pass 2.
template <typename scalar_t, int kNorm, int W>
void add_pull(const Pixels<scalar_t>& pixels, const Scratch<accumulate_t<scalar_t>>& scratch,
              const accumulate_t<scalar_t>* means, accumulate_t<scalar_t> delta_var,
              double* squares, double* pull) {
  using ByChannel = ChannelMajor<scalar_t, kNorm, W>;
  using ByPixel = PixelMajor<scalar_t, kNorm, W>;
  const int64_t long_run = long_run_of<W>(pixels);
  for_each_tile(pixels, scratch, long_run, [&](auto part, auto tile, int64_t) {
    if (by_channel(part, tile, long_run)) {
      const bool done = with_channels<W>(part.channels, [&](auto channels) {
        ByChannel::template add_pull<channels()>(part, tile, means, delta_var, squares, pull);
      });
      if (done) {
        return;
      }
      ByChannel::load_and_find_hinges(part, tile, means, delta_var);
      for_each_run(tile, [&](Run run) {
        const int64_t table = run.slot * tile.padded;
        if (add_squares(tile, run, squares)) {
          ByChannel::add_pull(tile, run, means + table, pull + table);
        }
      });
    } else {
      with_rows<ByPixel>(part, tile, [&](auto rows) {
        ByPixel::find_hinges(rows, tile, means, delta_var);
        if (tile.singly) {
          ByPixel::add_pull_singly(rows, tile, means, squares, pull);
          return;
        }
        for_each_run(tile, [&](Run run) {
          const int64_t table = run.slot * tile.padded;
          if (add_squares(tile, run, squares)) {
            ByPixel::add_pull(rows, tile, run, means + table, pull + table);
          }
        });
      });
    }
  });
}

// The gradient of a tile, pixel-major.
template <typename ByPixel, typename RowsT, typename T, typename GradientRowsT>
DISCLOSS_INLINE void write_rows(RowsT rows, Tile<T> tile, GradientTables<T> tables, T delta,
                                GradientRowsT gradient) {
  if constexpr (RowsT::kOneVector) {
    if (tile.singly) {
      ByPixel::write_gradient_singly(rows, tile, tables, delta, gradient);
      return;
    }
  }
  ByPixel::find_hinges(rows, tile, tables.means, delta);
  const auto write = [=](Run run) __attribute__((always_inline)) {
    if (run.slot < 0) {
      ByPixel::clear(run, gradient);
    } else {
      const int64_t table = run.slot * tile.padded;
      ByPixel::write_gradient(rows, tile, run, tables.means + table, tables.shared + table,
                              tables.factors[run.slot], gradient);
    }
  };
  if (tile.singly) {
    for (int32_t i = 0; i < tile.pixels; ++i) {
      write(Run{i, i + 1, tile.slots[i]});
    }
  } else {
    for (int64_t r = 0; r < tile.run_count; ++r) {
      write(tile.runs[r]);
    }
  }
}

// Pass 3.
template <typename scalar_t, int kNorm, int W>
void write_gradient(const Pixels<scalar_t>& pixels,
                    const GradientTables<accumulate_t<scalar_t>>& tables,
                    accumulate_t<scalar_t> delta_var,
                    const Scratch<accumulate_t<scalar_t>>& scratch,
                    const GradientPixels<scalar_t>& gradient) {
  using ByChannel = ChannelMajor<scalar_t, kNorm, W>;
  using ByPixel = PixelMajor<scalar_t, kNorm, W>;
  const bool to_channels = gradient.pixel_stride == 1;
  const bool backwards = ByChannel::better_backwards(pixels, gradient.gradient);
  for_each_tile(pixels, scratch, kLongRunOfGradient, [&](auto part, auto tile, int64_t begin) {
    GradientPixels<scalar_t> out = gradient;
    out.gradient += begin * gradient.pixel_stride;
    if (to_channels && by_channel(part, tile, kLongRunOfGradient)) {
      const bool done = with_channels<W>(part.channels, [&](auto channels) {
        ByChannel::template write_gradient<channels()>(part, tile, tables, delta_var, out,
                                                       backwards);
      });
      if (done) {
        return;
      }
      ByChannel::load_and_find_hinges(part, tile, tables.means, delta_var);
      ByChannel::write_gradient(tile, tables, out);
      return;
    }
    with_rows<ByPixel>(part, tile, [&](auto rows) {
      if (to_channels) {
        write_rows<ByPixel>(rows, tile, tables, delta_var, ByPixel::gradient_of_tile(tile));
        ByPixel::store_transposed(tile, out);
      } else if (part.channels % W == 0) {
        write_rows<ByPixel>(
            rows, tile, tables, delta_var,
            GradientRows<scalar_t, true>{out.gradient, out.pixel_stride, part.channels});
      } else {
        write_rows<ByPixel>(
            rows, tile, tables, delta_var,
            GradientRows<scalar_t, false>{out.gradient, out.pixel_stride, part.channels});
      }
    });
  });
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
