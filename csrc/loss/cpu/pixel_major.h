// A tile with one row for each pixel, values [pixels, padded]: vectors of neighbouring channels,
// for channels-last and packed embeddings, and for ids that change from pixel to pixel.
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

// W: the channels of a vector.
template <typename scalar_t, int kNorm, int W>
struct PixelMajor {
  using accscalar_t = accumulate_t<scalar_t>;
  using P = Pack<accscalar_t, W>;
  using TileT = Tile<accscalar_t>;
  static constexpr int64_t kLanesOfRow = W;

  static DISCLOSS_INLINE P zero() { return P(accscalar_t(0)); }
  static DISCLOSS_INLINE accscalar_t* row(TileT tile, int64_t i) {
    return tile.values + i * tile.padded;
  }
  template <bool kOne>
  static DISCLOSS_INLINE Rows<accscalar_t, kOne> rows_of_tile(TileT tile) {
    return {tile.values, tile.padded, (tile.channels + W - 1) / W * W, nullptr};
  }
  static DISCLOSS_INLINE GradientRows<accscalar_t, true> gradient_of_tile(TileT tile) {
    return {tile.values, tile.padded, tile.channels};
  }
  template <bool kOne>
  static DISCLOSS_INLINE Rows<scalar_t, kOne> rows_of_memory(Pixels<scalar_t> pixels) {
    return {pixels.embeddings, pixels.pixel_stride, pixels.channels, pixels.end};
  }

  // Channels-first memory into the tile, W x W elements at a time; 0 behind the last channel.
  static DISCLOSS_INLINE void load_transposed(Pixels<scalar_t> pixels, TileT tile) {
    for (int64_t first = 0; first < tile.channels; first += W) {
      for (int64_t i = 0; i < tile.pixels; i += W) {
        const scalar_t* x = pixels.embeddings + first * pixels.channel_stride + i;
        const bool whole = first + W <= tile.channels && i + W <= tile.pixels;
        P block[W];
#pragma GCC unroll 16
        for (int c = 0; c < W; ++c) {
          prefetch(x + kPixelsAhead);
          block[c] = whole                       ? DISCLOSS_CPU_TARGET::load<W>(x)
                     : first + c < tile.channels ? load_before<W>(x, pixels.end)
                                                 : zero();
          x += pixels.channel_stride;
        }
        transpose(block);
#pragma GCC unroll 16
        for (int p = 0; p < W; ++p) {
          store(row(tile, i + p) + first, block[p]);
        }
      }
    }
  }

  // sums += sum over the run of term(pixel, first), a vector of channels from `first`
  template <typename RowsT, typename Term>
  static DISCLOSS_INLINE void add_over_run(RowsT rows, Run run, double* sums, const Term& term) {
    for (int64_t first = 0; first < rows.last(); first += W) {
      for (int64_t i = run.begin; i < run.end; i += kShortSum) {
        P sum = term(i, first);
        for (int64_t j = i + 1; j < run.end && j < i + kShortSum; ++j) {
          sum = sum + term(j, first);
        }
        add_to<W>(sums + first, sum);
      }
    }
  }

  template <typename RowsT>
  static DISCLOSS_INLINE void add_sums(RowsT rows, Run run, double* sums) {
    add_over_run(rows, run, sums, [=](int64_t i, int64_t first) __attribute__((always_inline)) {
      return rows.template load<W>(i, first);
    });
  }

  // The same for all pixels, each by itself. counts [K], sums [K, padded]
  template <typename RowsT>
  static DISCLOSS_INLINE void add_sums_singly(RowsT rows, TileT tile, int64_t* counts,
                                              double* sums) {
    for (int64_t i = 0; i < tile.pixels; ++i) {
      const int64_t slot = tile.slots[i];
      if (slot < 0) {
        continue;
      }
      ++counts[slot];
      for (int64_t first = 0; first < rows.last(); first += W) {
        add_to<W>(sums + slot * tile.padded + first, rows.template load<W>(i, first));
      }
    }
  }

  // v_i, channels from `first`. mean [padded]
  template <typename RowsT>
  static DISCLOSS_INLINE P difference(RowsT rows, int64_t i, int64_t first,
                                      const accscalar_t* mean) {
    return rows.template load<W>(i, first) - DISCLOSS_CPU_TARGET::load<W>(mean + first);
  }

  // Scales and squares of all pixels; of ignored ones they mean nothing. means [K, padded]
  template <typename RowsT>
  static DISCLOSS_INLINE void find_hinges(RowsT rows, TileT tile, const accscalar_t* means,
                                          accscalar_t delta) {
    for (int64_t begin = 0; begin < tile.pixels; begin += W) {
      P sums[W];
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        const int64_t i = begin + p < tile.pixels ? begin + p : tile.pixels - 1;
        const int64_t slot = tile.slots[i] < 0 ? 0 : tile.slots[i];
        const accscalar_t* mean = means + slot * tile.padded;
        sums[p] = zero();
        for (int64_t first = 0; first < rows.last(); first += W) {
          sums[p] = Norm<kNorm>::accumulate(sums[p], difference(rows, i, first, mean));
        }
      }
      store_hinges<kNorm>(tile, begin, sum_of_each(sums), delta);
    }
  }

  // h_i d|v_i|, channels from `first`. mean [padded]
  template <typename RowsT>
  static DISCLOSS_INLINE P pull_of(RowsT rows, TileT tile, int64_t i, int64_t first,
                                   const accscalar_t* mean) {
    return P(tile.scales[i]) * Norm<kNorm>::direction(difference(rows, i, first, mean));
  }

  // pull [padded] += sum over the run of h_i d|v_i|. mean [padded]
  template <typename RowsT>
  static DISCLOSS_INLINE void add_pull(RowsT rows, TileT tile, Run run, const accscalar_t* mean,
                                       double* pull) {
    add_over_run(rows, run, pull, [=](int64_t i, int64_t first) __attribute__((always_inline)) {
      return pull_of(rows, tile, i, first, mean);
    });
  }

  // A bit for each of the 64 pixels from `begin`: whether it is outside its margin, or NaN. So many
  // at a time because a loop over bits ends with a branch that nothing can predict.
  static DISCLOSS_INLINE uint64_t outside(TileT tile, int64_t begin) {
    using Scales = Pack<accscalar_t, kLanes<accscalar_t>>;
    uint64_t bits = 0;
    for (int64_t i = 0; i < 64; i += kLanes<accscalar_t>) {
      const auto scales = load<kLanes<accscalar_t>>(tile.scales + begin + i);
      bits |= static_cast<uint64_t>(bits_of<Scales>(scales != Scales(accscalar_t(0)))) << i;
    }
    const int64_t count = tile.pixels - begin;
    return count < 64 ? bits & ((uint64_t{1} << count) - 1) : bits;
  }

  // The same for all pixels, each by itself, and squares [K] += h_i^2. means, pull [K, padded]
  template <typename RowsT>
  static DISCLOSS_INLINE void add_pull_singly(RowsT rows, TileT tile, const accscalar_t* means,
                                              double* squares, double* pull) {
    for (int64_t begin = 0; begin < tile.pixels; begin += 64) {
      for (uint64_t bits = outside(tile, begin); bits != 0; bits &= bits - 1) {
        const int64_t i = begin + __builtin_ctzll(bits);
        const int64_t slot = tile.slots[i];
        if (slot < 0) {
          continue;
        }
        squares[slot] += static_cast<double>(tile.squares[i]);
        const int64_t table = slot * tile.padded;
        for (int64_t first = 0; first < rows.last(); first += W) {
          add_to<W>(pull + table + first, pull_of(rows, tile, i, first, means + table));
        }
      }
    }
  }

  // gradient = factor h_i d|v_i| + shared, of a run. mean, shared [padded]
  template <typename RowsT, typename GradientRowsT>
  static DISCLOSS_INLINE void write_gradient(RowsT rows, TileT tile, Run run,
                                             const accscalar_t* mean, const accscalar_t* shared,
                                             accscalar_t factor, GradientRowsT gradient) {
    for (int64_t first = 0; first < rows.last(); first += W) {
      const P mean_part = DISCLOSS_CPU_TARGET::load<W>(mean + first);
      const P shared_part = DISCLOSS_CPU_TARGET::load<W>(shared + first);
      for (int64_t i = run.begin; i < run.end; ++i) {
        const P direction = Norm<kNorm>::direction(rows.template load<W>(i, first) - mean_part);
        gradient.store(i, first, P(factor * tile.scales[i]) * direction + shared_part);
      }
    }
  }

  // The same of all pixels, each by itself, whose rows are one vector: it stays in a register from
  // the norm to the gradient.
  template <typename RowsT, typename GradientRowsT>
  static DISCLOSS_INLINE void write_gradient_singly(RowsT rows, TileT tile,
                                                    GradientTables<accscalar_t> tables,
                                                    accscalar_t delta, GradientRowsT gradient) {
    for (int64_t begin = 0; begin < tile.pixels; begin += W) {
      P v[W], sums[W];
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        const int64_t i = begin + p < tile.pixels ? begin + p : tile.pixels - 1;
        const int64_t slot = tile.slots[i] < 0 ? 0 : tile.slots[i];
        v[p] = difference(rows, i, 0, tables.means + slot * tile.padded);
        sums[p] = Norm<kNorm>::accumulate(zero(), v[p]);
      }
      store_hinges<kNorm>(tile, begin, sum_of_each(sums), delta);
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        const int64_t i = begin + p;
        if (i >= tile.pixels) {
          break;
        }
        const int64_t slot = tile.slots[i];
        if (slot < 0) {
          gradient.store(i, 0, zero());
        } else {
          const P shared = DISCLOSS_CPU_TARGET::load<W>(tables.shared + slot * tile.padded);
          const P scale(tables.factors[slot] * tile.scales[i]);
          gradient.store(i, 0, scale * Norm<kNorm>::direction(v[p]) + shared);
        }
      }
    }
  }

  // The gradient of an ignored run.
  template <typename GradientRowsT>
  static DISCLOSS_INLINE void clear(Run run, GradientRowsT gradient) {
    for (int64_t i = run.begin; i < run.end; ++i) {
      for (int64_t first = 0; first < gradient.channels; first += W) {
        gradient.store(i, first, zero());
      }
    }
  }

  // The tile into channels-first memory.
  static DISCLOSS_INLINE void store_transposed(TileT tile, GradientPixels<scalar_t> out) {
    for (int64_t first = 0; first < tile.channels; first += W) {
      for (int64_t i = 0; i < tile.pixels; i += W) {
        P block[W];
#pragma GCC unroll 16
        for (int p = 0; p < W; ++p) {
          block[p] = DISCLOSS_CPU_TARGET::load<W>(row(tile, i + p) + first);
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
};

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
