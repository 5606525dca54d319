// Pixels as rows, of memory or of a tile: vectors of neighbouring channels, for channels-last and
// packed embeddings, and for ids that change from pixel to pixel.
#pragma once

#include "tile_rows.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// W: the channels of a vector. RowsT: Rows; GradientRowsT: GradientRows.
template <typename T, int kNorm, int W>
struct PixelMajor {
  using P = Pack<T, W>;

  static DISCLOSS_INLINE P zero() { return P(T(0)); }

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

  // sums [K, padded] += x_i
  template <typename RowsT>
  static DISCLOSS_OUTLINE void add_sums(RowsT rows, Tile<T> tile, double* sums) {
    for_each_run(tile, [=](int64_t, Run run) __attribute__((always_inline)) {
      add_over_run(rows, run, sums + run.slot * tile.padded,
                   [=](int64_t i, int64_t first)
                       __attribute__((always_inline)) { return rows.template load<W>(i, first); });
    });
  }

  // The same for all pixels, each by itself, and counts [K] += 1.
  template <typename RowsT>
  static DISCLOSS_OUTLINE void add_sums_singly(RowsT rows, Tile<T> tile, int64_t* counts,
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
  static DISCLOSS_INLINE P difference(RowsT rows, int64_t i, int64_t first, const T* mean) {
    return rows.template load<W>(i, first) - load<W>(mean + first);
  }

  // Scales and squares of all pixels; of ignored ones they mean nothing. means [K, padded]
  template <typename RowsT>
  static DISCLOSS_OUTLINE void find_hinges(RowsT rows, Tile<T> tile, const T* means, T delta) {
    for (int64_t begin = 0; begin < tile.pixels; begin += W) {
      P sums[W];
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        const int64_t i = begin + p < tile.pixels ? begin + p : tile.pixels - 1;
        const int64_t slot = tile.slots[i] < 0 ? 0 : tile.slots[i];
        const T* mean = means + slot * tile.padded;
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
  static DISCLOSS_INLINE P pull_of(RowsT rows, Tile<T> tile, int64_t i, int64_t first,
                                   const T* mean) {
    return P(tile.scales[i]) * Norm<kNorm>::direction(difference(rows, i, first, mean));
  }

  // squares [K] += h_i^2, pull [K, padded] += h_i d|v_i|, whose hinges have been found. means
  // [K, padded]
  template <typename RowsT>
  static DISCLOSS_OUTLINE void add_pull(RowsT rows, Tile<T> tile, const T* means, HingeSums sums) {
    for_each_run(tile, [=](int64_t, Run run) __attribute__((always_inline)) {
      const int64_t table = run.slot * tile.padded;
      if (add_squares(tile.squares, tile.scales, run, sums.squares + run.slot)) {
        add_over_run(rows, run, sums.directions + table,
                     [=](int64_t i, int64_t first) __attribute__((always_inline)) {
                       return pull_of(rows, tile, i, first, means + table);
                     });
      }
    });
  }

  // A bit for each of the 64 pixels from `begin`: whether it is outside its margin, or NaN. So many
  // at a time because a loop over bits ends with a branch that nothing can predict.
  static DISCLOSS_INLINE uint64_t outside(Tile<T> tile, int64_t begin) {
    using Scales = Pack<T, kLanes<T>>;
    uint64_t bits = 0;
    for (int64_t i = 0; i < 64; i += kLanes<T>) {
      const auto scales = load<kLanes<T>>(tile.scales + begin + i);
      bits |= static_cast<uint64_t>(bits_of<Scales>(scales != Scales(T(0)))) << i;
    }
    const int64_t count = tile.pixels - begin;
    return count < 64 ? bits & ((uint64_t{1} << count) - 1) : bits;
  }

  // The same for all pixels, each by itself.
  template <typename RowsT>
  static DISCLOSS_OUTLINE void add_pull_singly(RowsT rows, Tile<T> tile, const T* means,
                                               HingeSums sums) {
    for (int64_t begin = 0; begin < tile.pixels; begin += 64) {
      for (uint64_t bits = outside(tile, begin); bits != 0; bits &= bits - 1) {
        const int64_t i = begin + __builtin_ctzll(bits);
        const int64_t slot = tile.slots[i];
        if (slot < 0) {
          continue;
        }
        sums.squares[slot] += static_cast<double>(tile.squares[i]);
        const int64_t table = slot * tile.padded;
        for (int64_t first = 0; first < rows.last(); first += W) {
          add_to<W>(sums.directions + table + first, pull_of(rows, tile, i, first, means + table));
        }
      }
    }
  }

  // gradient = factor h_i d|v_i| + shared, or 0 where ignored, whose hinges have been found.
  template <typename RowsT, typename GradientRowsT>
  static DISCLOSS_OUTLINE void write_gradient(RowsT rows, Tile<T> tile, GradientTables<T> tables,
                                              GradientRowsT gradient) {
    const int64_t runs = tile.singly ? tile.pixels : tile.run_count;
    for (int64_t r = 0; r < runs; ++r) {
      const auto i = static_cast<int32_t>(r);
      const Run run = tile.singly ? Run{i, i + 1, tile.slots[i]} : tile.runs[r];
      if (run.slot < 0) {
        clear(run, gradient);
        continue;
      }
      const T* mean = tables.means + run.slot * tile.padded;
      const T* shared = tables.shared + run.slot * tile.padded;
      const T factor = tables.factors[run.slot];
      for (int64_t first = 0; first < rows.last(); first += W) {
        const P mean_part = load<W>(mean + first);
        const P shared_part = load<W>(shared + first);
        for (int64_t j = run.begin; j < run.end; ++j) {
          const P direction = Norm<kNorm>::direction(rows.template load<W>(j, first) - mean_part);
          gradient.store(j, first, P(factor * tile.scales[j]) * direction + shared_part);
        }
      }
    }
  }

  // The same of all pixels, each by itself, whose rows are one vector: it stays in a register from
  // the norm, found here, to the gradient.
  template <typename RowsT, typename GradientRowsT>
  static DISCLOSS_OUTLINE void write_gradient_singly(RowsT rows, Tile<T> tile,
                                                     GradientTables<T> tables, T delta,
                                                     GradientRowsT gradient) {
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
          const P shared = load<W>(tables.shared + slot * tile.padded);
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

  // The gradient of a tile, from its rows.
  template <typename RowsT, typename GradientRowsT>
  static DISCLOSS_INLINE void find_and_write_gradient(RowsT rows, Tile<T> tile,
                                                      GradientTables<T> tables, T delta,
                                                      GradientRowsT gradient) {
    if constexpr (RowsT::kOneVector) {
      if (tile.singly) {
        write_gradient_singly(rows, tile, tables, delta, gradient);
        return;
      }
    }
    find_hinges(rows, tile, tables.means, delta);
    write_gradient(rows, tile, tables, gradient);
  }
};

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
