// Tiles whose channels are rows, [D, stride]: vectors of neighbouring pixels, for channels-first
// embeddings where runs are long.
//
// A block is W pixels from a multiple of W on; where runs meet inside it, each is worked out for
// the whole block and the lanes of the later ones are laid over those of the earlier.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// kRows: the channels that are summed side by side, at most W.
template <typename scalar_t, int kNorm, int kRows>
struct ChannelMajor {
  using accscalar_t = accumulate_t<scalar_t>;
  static constexpr int W = kLanes<accscalar_t>;
  using P = Pack<accscalar_t, W>;

  static DISCLOSS_INLINE P zero() { return P(accscalar_t(0)); }
  static DISCLOSS_INLINE accscalar_t* at(Tile<accscalar_t> tile, int64_t d, int64_t i) {
    return tile.values + d * tile.pitch + i;
  }
  static DISCLOSS_INLINE P x(Tile<accscalar_t> tile, int64_t d, int64_t i) {
    return load<W>(at(tile, d, i));
  }

  // values = x_i
  static DISCLOSS_INLINE void load_tile(Pixels<scalar_t> pixels, Tile<accscalar_t> tile) {
    for (int64_t d = 0; d < tile.channels; ++d) {
      const scalar_t* row = pixels.embeddings + d * pixels.channel_stride;
      int64_t i = 0;
      for (; i + W <= tile.pixels; i += W) {
        prefetch(row + i + kTilesAhead * tile.pitch);
        store(at(tile, d, i), load<W>(row + i));
      }
      if (i < tile.pixels) {
        store(at(tile, d, i), load_before<W>(row + i, row + tile.pixels));
      }
    }
  }

  static DISCLOSS_INLINE void store_tile(Tile<accscalar_t> tile, GradientPixels<scalar_t> out) {
    for (int64_t d = 0; d < tile.channels; ++d) {
      scalar_t* row = out.gradient + d * out.channel_stride;
      int64_t i = 0;
      for (; i + W <= tile.pixels; i += W) {
        prefetch(row + i + kTilesAhead * tile.pitch);
        store(row + i, x(tile, d, i));
      }
      if (i < tile.pixels) {
        store_first(row + i, x(tile, d, i), tile.pixels - i);
      }
    }
  }

  // Calls body(i, first, last) for each block of pixels from i, in which the runs first .. last
  // meet.
  template <typename Body>
  static DISCLOSS_INLINE void for_each_block(Tile<accscalar_t> tile, const Body& body) {
    int64_t first = 0;
    for (int64_t i = 0; i < tile.pixels; i += W) {
      const int64_t end = i + W < tile.pixels ? i + W : tile.pixels;
      int64_t last = first;
      while (tile.runs[last].end < end) {
        ++last;
      }
      body(i, first, last);
      first = tile.runs[last].end == end ? last + 1 : last;
    }
  }

  // sums [padded] += sum over the run of term(d, i), a vector for channel d and the pixels from i.
  // What comes of rows behind the last channel is never looked at.
  template <typename Term>
  static DISCLOSS_INLINE void add_over_run(Run run, int64_t channels, double* sums,
                                           const Term& term) {
    for (int64_t begin = run.begin; begin < run.end;) {
      const int64_t block = begin / W * W;
      const int64_t end = block + kShortSum * W < run.end ? block + kShortSum * W : run.end;
      const auto first_mask = lanes_between<P>(begin - block, end - block);
      for (int64_t first = 0; first < channels; first += kRows) {
        P rows[kRows];
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          rows[r] = select(first_mask, term(first + r, block), zero());
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
            rows[r] = rows[r] + select(last_mask, term(first + r, i), zero());
          }
        }
        add_to<kRows>(sums + first, sum_of_each<kRows>(rows));
      }
      begin = end;
    }
  }

  static DISCLOSS_INLINE void add_sums(Tile<accscalar_t> tile, Run run, double* sums) {
    add_over_run(run, tile.channels, sums,
                 [=](int64_t d, int64_t i)
                     __attribute__((always_inline)) { return x(tile, d, i); });
  }

  // sum_d of the norm of x_i - mean, for the pixels from i
  static DISCLOSS_INLINE P norm_sums(Tile<accscalar_t> tile, int64_t i, const accscalar_t* mean) {
    P sums = zero();
#pragma GCC unroll 4
    for (int64_t d = 0; d < tile.channels; ++d) {
      sums = Norm<kNorm>::accumulate(sums, x(tile, d, i) - P(mean[d]));
    }
    return sums;
  }

  // Scales and squares of all pixels. means [K, padded]
  static DISCLOSS_INLINE void find_hinges(Tile<accscalar_t> tile, const accscalar_t* means,
                                          Margin<accscalar_t> margin) {
    const auto sums_of = [=](int64_t i, Run run) __attribute__((always_inline)) {
      return run.slot < 0 ? zero() : norm_sums(tile, i, means + run.slot * tile.padded);
    };
    for_each_block(tile,
                   [=](int64_t i, int64_t first, int64_t last) __attribute__((always_inline)) {
                     P sums = sums_of(i, tile.runs[first]);
                     for (int64_t r = first + 1; r <= last; ++r) {
                       const Run run = tile.runs[r];
                       sums = select(first_lanes<P>(run.begin - i), sums, sums_of(i, run));
                     }
                     store_hinges<kNorm>(tile, i, sums, margin);
                   });
  }

  // pull [padded] += sum over the run of h_i d|v_i|. mean [padded]
  static DISCLOSS_INLINE void add_pull(Tile<accscalar_t> tile, Run run, const accscalar_t* mean,
                                       double* pull) {
    add_over_run(run, tile.channels, pull,
                 [=](int64_t d, int64_t i) __attribute__((always_inline)) {
                   const P v = x(tile, d, i) - P(mean[d]);
                   return load<W>(tile.scales + i) * Norm<kNorm>::direction(v);
                 });
  }

  // values = factor h_i d|v_i| + shared, or 0 where ignored
  static DISCLOSS_INLINE void find_gradient(Tile<accscalar_t> tile,
                                            GradientTables<accscalar_t> tables) {
    for_each_block(tile, [=](int64_t i, int64_t first,
                             int64_t last) __attribute__((always_inline)) {
      for (int64_t d = 0; d < tile.channels; ++d) {
        P values = gradient(tile, d, i, tile.runs[first], tables);
        for (int64_t r = first + 1; r <= last; ++r) {
          const Run run = tile.runs[r];
          values = select(first_lanes<P>(run.begin - i), values, gradient(tile, d, i, run, tables));
        }
        store(at(tile, d, i), values);
      }
    });
  }

  static DISCLOSS_INLINE P gradient(Tile<accscalar_t> tile, int64_t d, int64_t i, Run run,
                                    GradientTables<accscalar_t> tables) {
    if (run.slot < 0) {
      return zero();
    }
    const int64_t at = run.slot * tile.padded + d;
    const P direction = Norm<kNorm>::direction(x(tile, d, i) - P(tables.means[at]));
    return P(tables.factors[run.slot]) * load<W>(tile.scales + i) * direction +
           P(tables.shared[at]);
  }
};

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
