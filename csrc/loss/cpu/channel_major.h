// Tiles whose channels are rows, [D, pitch], of any number of channels: vectors of neighbouring
// pixels, for channels-first embeddings where runs are long.
#pragma once

#include "blocks.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

template <typename T>
DISCLOSS_INLINE T* value_at(Tile<T> tile, int64_t d, int64_t i) {
  return tile.values + d * tile.pitch + i;
}

// values = x_i, and scales and squares of all pixels, of ignored ones anything. means [K, padded]
template <typename scalar_t, int kNorm, typename T>
DISCLOSS_OUTLINE void load_and_find_hinges(Pixels<scalar_t> pixels, Tile<T> tile, const T* means,
                                           T delta) {
  constexpr int W = kLanes<T>;
  for_each_known_block(tile, [=](int64_t i, auto block) __attribute__((always_inline)) {
    const auto rows = block.rows(means, tile.padded);
    Pack<T, W> sums(T(0));
#pragma GCC unroll 4
    for (int64_t d = 0; d < tile.channels; ++d) {
      const auto value =
          load_ahead<W>(pixels.embeddings + d * pixels.channel_stride + i, kPixelsAhead);
      store(value_at(tile, d, i), value);
      sums = Norm<kNorm>::accumulate(sums, value - block.column(rows, d));
    }
    store_hinges<kNorm>(tile, i, sums, delta);
  });
}

// sums [padded] += sum over the run of term(d, i), a vector for channel d and the pixels from i;
// kRows channels side by side. What comes of rows behind the last channel is never looked at.
template <typename T, int kRows, typename Term>
DISCLOSS_INLINE void add_over_run(Run run, int64_t channels, double* sums, const Term& term) {
  constexpr int W = kLanes<T>;
  using P = Pack<T, W>;
  const P zero(T(0));
  for (int64_t begin = run.begin; begin < run.end;) {
    const int64_t block = begin / W * W;
    const int64_t end = block + kShortSum * W < run.end ? block + kShortSum * W : run.end;
    const auto first_mask = lanes_between<P>(begin - block, end - block);
    for (int64_t first = 0; first < channels; first += kRows) {
      P rows[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        rows[r] = select(first_mask, term(first + r, block), zero);
      }
      int64_t i = block + W;
      for (; i + W <= end; i += W) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          rows[r] = rows[r] + term(first + r, i);
        }
      }
      if (i < end) {
        const auto last_mask = first_lanes<P>(end - i);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          rows[r] = rows[r] + select(last_mask, term(first + r, i), zero);
        }
      }
      add_to<kRows>(sums + first, sum_of_each(rows));
    }
    begin = end;
  }
}

// squares [K] += h_i^2, pull [K, padded] += h_i d|v_i|, of a tile that load_and_find_hinges has
// filled. means [K, padded]
template <typename T, int kNorm, int kRows>
DISCLOSS_OUTLINE void add_pull_by_channel(Tile<T> tile, const T* means, HingeSums sums) {
  constexpr int W = kLanes<T>;
  for_each_run(tile, [=](int64_t, Run run) __attribute__((always_inline)) {
    const T* mean = means + run.slot * tile.padded;
    if (add_squares(tile.squares, tile.scales, run, sums.squares + run.slot)) {
      add_over_run<T, kRows>(run, tile.channels, sums.directions + run.slot * tile.padded,
                             [=](int64_t d, int64_t i) __attribute__((always_inline)) {
                               const auto v = load<W>(value_at(tile, d, i)) - Pack<T, W>(mean[d]);
                               return load<W>(tile.scales + i) * Norm<kNorm>::direction(v);
                             });
    }
  });
}

// gradient = factor h_i d|v_i| + shared, or 0 where ignored, of a tile that load_and_find_hinges
// has filled.
template <typename scalar_t, int kNorm, typename T>
DISCLOSS_OUTLINE void write_gradient_by_channel(Tile<T> tile, GradientTables<T> tables,
                                                GradientPixels<scalar_t> out) {
  constexpr int W = kLanes<T>;
  for_each_known_block(tile, [=](int64_t i, auto block) __attribute__((always_inline)) {
    const Pack<T, W> zero(T(0));
    const auto means = block.rows(tables.means, tile.padded);
    const auto shared = block.rows(tables.shared, tile.padded);
    const auto scale = block.column(block.rows(tables.factors, 1), 0) * load<W>(tile.scales + i);
    const auto kept = block.kept_lanes();
    for (int64_t d = 0; d < tile.channels; ++d) {
      const auto v = load<W>(value_at(tile, d, i)) - block.column(means, d);
      auto values = scale * Norm<kNorm>::direction(v) + block.column(shared, d);
      if (!block.all_kept) {
        values = select(kept == zero, zero, values);
      }
      scalar_t* row = out.gradient + d * out.channel_stride;
      prefetch(row + i + kPixelsAhead);
      store(row + i, values);
    }
  });
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
