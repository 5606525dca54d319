// Pass 1 over channels-first memory where runs are long: straight from memory, channel after
// channel, so that it is read in long pieces.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// The sums of one channel over the runs of a tile, as vectors of pixels.
template <typename scalar_t>
struct ChannelSums {
  using T = accumulate_t<scalar_t>;
  static constexpr int W = kLanes<T>;
  using P = Pack<T, W>;

  static DISCLOSS_INLINE P zero() { return P(T(0)); }
  static DISCLOSS_INLINE P load_x(const scalar_t* x) { return load_ahead<W>(x, kTileAhead); }

  // Sum of kBlocks vectors from x on, in pairs: as exact as a few of them one after the other.
  template <int kBlocks>
  static DISCLOSS_INLINE P sum_in_pairs(const scalar_t* x) {
    if constexpr (kBlocks == 1) {
      return load_x(x);
    } else {
      return sum_in_pairs<kBlocks / 2>(x) + sum_in_pairs<kBlocks / 2>(x + kBlocks / 2 * W);
    }
  }

  // sum + the pixels begin <= i < end, fewer than 2 kBlocks vectors. x: pixel 0
  template <int kBlocks>
  static DISCLOSS_INLINE P add_rest(const scalar_t* x, int64_t begin, int64_t end, P sum) {
    if constexpr (kBlocks == 0) {
      return begin < end ? sum + select(first_lanes<P>(end - begin), load_x(x + begin), zero())
                         : sum;
    } else {
      if (begin + kBlocks * W <= end) {
        sum = sum + sum_in_pairs<kBlocks>(x + begin);
        begin += kBlocks * W;
      }
      return add_rest<kBlocks / 2>(x, begin, end, sum);
    }
  }

  // Sum of a channel over a run, a vector. x: the channel from the first pixel of the tile.
  static DISCLOSS_INLINE P of_run(const scalar_t* x, Run run) {
    constexpr int64_t kPairs = 64;  // pixels
    int64_t i = run.begin / W * W;
    P rest = zero();
    if (i < run.begin) {
      rest = select(lanes_between<P>(run.begin - i, run.end - i), load_x(x + i), zero());
      i += W;
    }
    P sum = zero();
    for (; i + kPairs <= run.end; i += kPairs) {
      sum = sum + sum_in_pairs<kPairs / W>(x + i);
    }
    return sum + add_rest<kPairs / W / 2>(x, i, run.end, rest);
  }
};

// values [runs, padded, W] of the tile = the sum of each run and channel, a vector; there is room
// for those of runs of W pixels.
template <typename scalar_t>
DISCLOSS_OUTLINE void sum_channels(Pixels<scalar_t> pixels, Tile<accumulate_t<scalar_t>> tile) {
  constexpr int W = ChannelSums<scalar_t>::W;
  const int64_t pitch = tile.padded * W;
  for (int64_t d = 0; d < tile.channels; ++d) {
    for (int64_t r = 0; r < tile.run_count; ++r) {
      store(tile.values + r * pitch + d * W,
            ChannelSums<scalar_t>::of_run(pixels.embeddings + d * pixels.channel_stride,
                                          tile.runs[r]));
    }
  }
}

// sums [K, padded] += what sum_channels left in the tile, kRows channels at a time.
template <typename T, int kRows>
DISCLOSS_OUTLINE void add_channel_sums(Tile<T> tile, double* sums) {
  constexpr int W = kLanes<T>;
  for_each_run(tile, [=](int64_t r, Run run) __attribute__((always_inline)) {
    for (int64_t first = 0; first < tile.channels; first += kRows) {
      Pack<T, W> rows[kRows];
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        rows[row] = load<W>(tile.values + (r * tile.padded + first + row) * W);
      }
      add_to<kRows>(sums + run.slot * tile.padded + first, sum_of_each(rows));
    }
  });
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
