// The passes over the pixels of a range, tile by tile, each tile in the layout that suits it; and
// the pass over pairs of means.
#pragma once

#include "channel_major.h"
#include "pixel_major.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// Shorter runs than this, on average, cost more as vectors of pixels than a transposition does.
constexpr int64_t kLongRun = 16;

template <typename scalar_t>
DISCLOSS_INLINE Pixels<scalar_t> part_of(const Pixels<scalar_t>& pixels, int64_t begin,
                                         int64_t count) {
  Pixels<scalar_t> part = pixels;
  part.embeddings += begin * pixels.pixel_stride;
  part.slots += begin;
  part.count = count;
  return part;
}

// Calls body(pixels of a tile, Tile, number of its first pixel).
template <typename scalar_t, typename Body>
DISCLOSS_INLINE void for_each_tile(const Pixels<scalar_t>& pixels,
                                   const Scratch<accumulate_t<scalar_t>>& scratch,
                                   const Body& body) {
  const int64_t step = tile_pixels(pixels.channels);
  for (int64_t begin = 0; begin < pixels.count; begin += step) {
    const int64_t count = pixels.count - begin < step ? pixels.count - begin : step;
    const int64_t run_count = find_runs(pixels.slots + begin, count, scratch.runs);
    const Tile<accumulate_t<scalar_t>> tile = {
        scratch.values, scratch.scales, scratch.squares,           scratch.runs,
        run_count,      count,          pixels.channels, padded_channels(pixels.channels)};
    body(part_of(pixels, begin, count), tile, begin);
  }
}

template <typename T>
DISCLOSS_INLINE bool has_long_runs(const Tile<T>& tile) {
  return tile.run_count * kLongRun <= tile.pixels;
}

// Pass 1.
template <typename scalar_t, int kNorm, int W>
void add_sums(const Pixels<scalar_t>& pixels, const Scratch<accumulate_t<scalar_t>>& scratch,
              int64_t* counts, double* sums) {
  using ByChannel = ChannelMajor<scalar_t, kNorm>;
  using ByPixel = PixelMajor<scalar_t, kNorm, W>;
  for_each_tile(pixels, scratch, [&](const auto& part, const auto& tile, int64_t) {
    for (int64_t r = 0; r < tile.run_count; ++r) {
      const Run run = tile.runs[r];
      if (run.slot >= 0) {
        counts[run.slot] += run.end - run.begin;
      }
    }
    if (part.pixel_stride != 1) {
      ByPixel::add_sums(ByPixel::rows_of_memory(part), tile, sums);
    } else if (has_long_runs(tile)) {
      ByChannel::add_sums(part, tile, sums);
    } else {
      ByPixel::load_transposed(part, tile);
      ByPixel::add_sums(ByPixel::rows_of_tile(tile), tile, sums);
    }
  });
}

// The sums over the pixels of a tile whose hinges are known.
template <typename Layout, typename T>
DISCLOSS_INLINE void add_hinges(const Tile<T>& tile, double* squares, double* pull) {
  for (int64_t r = 0; r < tile.run_count; ++r) {
    const Run run = tile.runs[r];
    if (run.slot >= 0) {
      squares[run.slot] += sum_over_run(tile.squares, run);
      // All scales are 0 where every pixel is inside its margin: they have nothing to add.
      if (sum_over_run(tile.scales, run) != 0) {
        Layout::add_pull(tile, run, pull + run.slot * tile.padded);
      }
    }
  }
}

// values = x_i - mu_k, pixel-major, from whichever layout the memory has.
template <typename ByPixel, typename scalar_t, typename T>
DISCLOSS_INLINE void subtract_by_pixel(const Pixels<scalar_t>& pixels, const Tile<T>& tile,
                                       const T* means) {
  if (pixels.pixel_stride != 1) {
    ByPixel::subtract_means(ByPixel::rows_of_memory(pixels), tile, means);
  } else {
    ByPixel::load_transposed(pixels, tile);
    ByPixel::subtract_means(ByPixel::rows_of_tile(tile), tile, means);
  }
}

// Pass 2.
template <typename scalar_t, int kNorm, int W>
void add_pull(const Pixels<scalar_t>& pixels, const Scratch<accumulate_t<scalar_t>>& scratch,
              const accumulate_t<scalar_t>* means, accumulate_t<scalar_t> delta_var,
              double* squares, double* pull) {
  using ByChannel = ChannelMajor<scalar_t, kNorm>;
  using ByPixel = PixelMajor<scalar_t, kNorm, W>;
  const Margin<accumulate_t<scalar_t>> margin = {1, delta_var};
  for_each_tile(pixels, scratch, [&](const auto& part, const auto& tile, int64_t) {
    if (part.pixel_stride == 1 && has_long_runs(tile)) {
      ByChannel::subtract_means(part, tile, means);
      ByChannel::find_hinges(tile, margin);
      add_hinges<ByChannel>(tile, squares, pull);
    } else {
      subtract_by_pixel<ByPixel>(part, tile, means);
      ByPixel::find_hinges(tile, margin);
      add_hinges<ByPixel>(tile, squares, pull);
    }
  });
}

// Pass 3.
template <typename scalar_t, int kNorm, int W>
void write_gradient(const Pixels<scalar_t>& pixels,
                    const GradientTables<accumulate_t<scalar_t>>& tables,
                    accumulate_t<scalar_t> delta_var,
                    const Scratch<accumulate_t<scalar_t>>& scratch,
                    const GradientPixels<scalar_t>& gradient) {
  using ByChannel = ChannelMajor<scalar_t, kNorm>;
  using ByPixel = PixelMajor<scalar_t, kNorm, W>;
  const Margin<accumulate_t<scalar_t>> margin = {1, delta_var};
  const bool to_channels = gradient.pixel_stride == 1;
  for_each_tile(pixels, scratch, [&](const auto& part, const auto& tile, int64_t begin) {
    GradientPixels<scalar_t> out = gradient;
    out.gradient += begin * gradient.pixel_stride;
    if (part.pixel_stride == 1 && to_channels && has_long_runs(tile)) {
      ByChannel::subtract_means(part, tile, tables.means);
      ByChannel::find_hinges(tile, margin);
      for (int64_t r = 0; r < tile.run_count; ++r) {
        ByChannel::write_gradient(tile, tile.runs[r], tables, out);
      }
      return;
    }
    subtract_by_pixel<ByPixel>(part, tile, tables.means);
    ByPixel::find_hinges(tile, margin);
    for (int64_t r = 0; r < tile.run_count; ++r) {
      if (to_channels) {
        ByPixel::write_gradient(tile, tile.runs[r], tables, tile.values, tile.padded,
                                tile.padded);
      } else {
        ByPixel::write_gradient(tile, tile.runs[r], tables, out.gradient, out.pixel_stride,
                                tile.channels);
      }
    }
    if (to_channels) {
      ByPixel::store_transposed(tile, out);
    }
  });
}

// The push: for each mean a, the others are the pixels of one run whose mean is a.
template <typename scalar_t, int kNorm>
void add_push(const Means<accumulate_t<scalar_t>>& means, int64_t first, int64_t last,
              const Scratch<accumulate_t<scalar_t>>& scratch, accumulate_t<scalar_t> delta,
              double* squares, double* push) {
  using T = accumulate_t<scalar_t>;
  using ByChannel = ChannelMajor<T, kNorm>;
  const Margin<T> margin = {-1, delta};
  const int64_t step = tile_pixels(means.channels);
  for (int64_t begin = 0; begin < means.count; begin += step) {
    const int64_t count = means.count - begin < step ? means.count - begin : step;
    const Pixels<T> others = {means.by_channel + begin, means.by_channel + means.pitch * means.channels,
                              means.pitch,    1, means.channels, nullptr, count};
    for (int64_t a = first; a < last; ++a) {
      scratch.runs[0] = {0, static_cast<int32_t>(count), static_cast<int32_t>(a)};
      const Tile<T> tile = {scratch.values, scratch.scales, scratch.squares,  scratch.runs, 1,
                            count,          means.channels, padded_channels(means.channels)};
      ByChannel::subtract_means(others, tile, means.by_instance);
      ByChannel::find_hinges(tile, margin);
      if (a >= begin && a < begin + count) {
        tile.scales[a - begin] = 0;
        tile.squares[a - begin] = 0;
      }
      add_hinges<ByChannel>(tile, squares, push);
    }
  }
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
