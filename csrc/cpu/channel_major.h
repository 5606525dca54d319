// A tile with one row for each channel, values [D, pitch]: vectors of neighbouring pixels, for
// channels-first embeddings where runs are long.
//
// A vector may reach past the end of its run. Loads mask those lanes or ignore them; stores to the
// tile are made good by the next run, which begins there, or fall into the padding.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

template <typename scalar_t, int kNorm>
struct ChannelMajor {
  using accscalar_t = accumulate_t<scalar_t>;
  static constexpr int W = kLanes<accscalar_t>;
  using P = Pack<accscalar_t, W>;
  using TileT = Tile<accscalar_t>;

  static DISCLOSS_INLINE P zero() { return P(accscalar_t(0)); }
  static DISCLOSS_INLINE accscalar_t* row(const TileT& tile, int64_t d) {
    return tile.values + d * tile_pitch(tile.channels);
  }

  // sums[k] += sum over the run of term(d, i), a vector for channel d and pixels from i
  template <typename Term>
  static DISCLOSS_INLINE void add_over_run(const Run& run, int64_t channels, double* sums,
                                           const Term& term) {
    for (int64_t begin = run.begin; begin < run.end; begin += kShortSum * W) {
      const int64_t end = begin + kShortSum * W < run.end ? begin + kShortSum * W : run.end;
      for (int64_t first = 0; first < channels; first += W) {
        P rows[W];
        for (int r = 0; r < W; ++r) {
          rows[r] = zero();
          if (first + r < channels) {
            int64_t i = begin;
            for (; i + W <= end; i += W) {
              rows[r] = rows[r] + term(first + r, i);
            }
            if (i < end) {
              rows[r] = rows[r] + select(first_lanes<P>(end - i), term(first + r, i), zero());
            }
          }
        }
        add_to(sums + first, sum_of_each(rows));
      }
    }
  }

  static DISCLOSS_INLINE void add_sums(const Pixels<scalar_t>& pixels, const TileT& tile,
                                       double* sums) {
    const auto term = [&](int64_t d, int64_t i) __attribute__((always_inline)) {
      return load_before<W>(pixels.embeddings + d * pixels.channel_stride + i, pixels.end);
    };
    for (int64_t r = 0; r < tile.run_count; ++r) {
      const Run run = tile.runs[r];
      if (run.slot >= 0) {
        add_over_run(run, tile.channels, sums + run.slot * tile.padded, term);
      }
    }
  }

  // values = x_i - mu_k; 0 where ignored
  static DISCLOSS_INLINE void subtract_means(const Pixels<scalar_t>& pixels, const TileT& tile,
                                             const accscalar_t* means) {
    for (int64_t r = 0; r < tile.run_count; ++r) {
      const Run run = tile.runs[r];
      for (int64_t d = 0; d < tile.channels; ++d) {
        const scalar_t* x = pixels.embeddings + d * pixels.channel_stride;
        accscalar_t* v = row(tile, d);
        if (run.slot < 0) {
          for (int64_t i = run.begin; i < run.end; i += W) {
            store(v + i, zero());
          }
        } else {
          const P mean(means[run.slot * tile.padded + d]);
          for (int64_t i = run.begin; i < run.end; i += W) {
            store(v + i, load_before<W>(x + i, pixels.end) - mean);
          }
        }
      }
    }
  }

  static DISCLOSS_INLINE void find_hinges(const TileT& tile, const Margin<accscalar_t>& margin) {
    for (int64_t i = 0; i < tile.pixels; i += W) {
      P sums = zero();
      for (int64_t d = 0; d < tile.channels; ++d) {
        sums = Norm<kNorm>::accumulate(sums, load<W>(row(tile, d) + i));
      }
      store_hinges<kNorm>(tile, i, sums, margin);
    }
  }

  // pull += sum over the run of h_i d|v_i|
  static DISCLOSS_INLINE void add_pull(const TileT& tile, const Run& run, double* pull) {
    add_over_run(run, tile.channels, pull, [&](int64_t d, int64_t i) __attribute__((always_inline)) {
      return load<W>(tile.scales + i) * Norm<kNorm>::direction(load<W>(row(tile, d) + i));
    });
  }

  // The gradient of a run: factor h_i d|v_i| + shared; 0 where ignored.
  static DISCLOSS_INLINE void write_gradient(const TileT& tile, const Run& run,
                                             const GradientTables<accscalar_t>& tables,
                                             const GradientPixels<scalar_t>& out) {
    for (int64_t d = 0; d < tile.channels; ++d) {
      scalar_t* gradient = out.gradient + d * out.channel_stride;
      const accscalar_t* v = row(tile, d);
      const bool ignored = run.slot < 0;
      const P shared(ignored ? accscalar_t(0) : tables.shared[run.slot * tile.padded + d]);
      const P factor(ignored ? accscalar_t(0) : tables.factors[run.slot]);
      for (int64_t i = run.begin; i < run.end; i += W) {
        const P pull = factor * load<W>(tile.scales + i);
        const P value = pull * Norm<kNorm>::direction(load<W>(v + i)) + shared;
        store_first(gradient + i, ignored ? zero() : value, tile.pixels - i);
      }
    }
  }
};

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
