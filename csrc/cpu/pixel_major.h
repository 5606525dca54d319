// A tile with one row for each pixel, values [pixels, padded]: vectors of neighbouring channels,
// for channels-last and packed embeddings, and for ids that change from pixel to pixel.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// Rows of `channels` elements, one for each pixel.
template <typename value_t>
struct Rows {
  const value_t* data;
  int64_t pitch;
  int64_t channels;
  const value_t* end;  // of the memory that may be read

  // W channels from `first`, 0 behind the last channel.
  template <int W>
  DISCLOSS_INLINE auto load(int64_t pixel, int64_t first) const {
    using P = Pack<accumulate_t<value_t>, W>;
    const value_t* from = data + pixel * pitch + first;
    if (first + W <= channels) {
      return DISCLOSS_CPU_TARGET::load<W>(from);
    }
    return select(first_lanes<P>(channels - first), load_before<W>(from, end),
                  P(accumulate_t<value_t>(0)));
  }
};

// W: the channels of a vector.
template <typename scalar_t, int kNorm, int W>
struct PixelMajor {
  using accscalar_t = accumulate_t<scalar_t>;
  using P = Pack<accscalar_t, W>;
  using TileT = Tile<accscalar_t>;

  static DISCLOSS_INLINE P zero() { return P(accscalar_t(0)); }
  static DISCLOSS_INLINE accscalar_t* row(const TileT& tile, int64_t i) {
    return tile.values + i * tile.padded;
  }
  static DISCLOSS_INLINE Rows<accscalar_t> rows_of_tile(const TileT& tile) {
    return {tile.values, tile.padded, tile.padded, nullptr};
  }
  static DISCLOSS_INLINE Rows<scalar_t> rows_of_memory(const Pixels<scalar_t>& pixels) {
    return {pixels.embeddings, pixels.pixel_stride, pixels.channels, pixels.end};
  }

  // Channels-first memory into the tile.
  static DISCLOSS_INLINE void load_transposed(const Pixels<scalar_t>& pixels, const TileT& tile) {
    for (int64_t first = 0; first < tile.channels; first += W) {
      for (int64_t i = 0; i < tile.pixels; i += W) {
        P block[W];
#pragma GCC unroll 16
        for (int c = 0; c < W; ++c) {
          block[c] = zero();
          if (first + c < tile.channels) {
            block[c] = load_before<W>(
                pixels.embeddings + (first + c) * pixels.channel_stride + i, pixels.end);
          }
        }
        transpose(block);
#pragma GCC unroll 16
        for (int p = 0; p < W; ++p) {
          store(row(tile, i + p) + first, block[p]);
        }
      }
    }
  }

  // sums[k] += sum over the run of term(pixel, first), a vector of channels from `first`
  template <typename Term>
  static DISCLOSS_INLINE void add_over_run(const Run& run, int64_t channels, double* sums,
                                           const Term& term) {
    for (int64_t first = 0; first < channels; first += W) {
      for (int64_t i = run.begin; i < run.end; i += kShortSum) {
        P sum = term(i, first);
        for (int64_t j = i + 1; j < run.end && j < i + kShortSum; ++j) {
          sum = sum + term(j, first);
        }
        add_to(sums + first, sum);
      }
    }
  }

  template <typename value_t>
  static DISCLOSS_INLINE void add_sums(const Rows<value_t>& rows, const TileT& tile,
                                       double* sums) {
    for (int64_t r = 0; r < tile.run_count; ++r) {
      const Run run = tile.runs[r];
      if (run.slot >= 0) {
        add_over_run(run, tile.channels, sums + run.slot * tile.padded,
                     [&](int64_t i, int64_t first) __attribute__((always_inline)) {
                       return rows.template load<W>(i, first);
                     });
      }
    }
  }

  // values = x_i - mu_k; 0 where ignored
  template <typename value_t>
  static DISCLOSS_INLINE void subtract_means(const Rows<value_t>& rows, const TileT& tile,
                                             const accscalar_t* means) {
    for (int64_t r = 0; r < tile.run_count; ++r) {
      const Run run = tile.runs[r];
      for (int64_t first = 0; first < tile.channels; first += W) {
        if (run.slot < 0) {
          for (int64_t i = run.begin; i < run.end; ++i) {
            store(row(tile, i) + first, zero());
          }
        } else {
          const P mean = DISCLOSS_CPU_TARGET::load<W>(means + run.slot * tile.padded + first);
          for (int64_t i = run.begin; i < run.end; ++i) {
            store(row(tile, i) + first, rows.template load<W>(i, first) - mean);
          }
        }
      }
    }
  }

  static DISCLOSS_INLINE void find_hinges(const TileT& tile, const Margin<accscalar_t>& margin) {
    for (int64_t i = 0; i < tile.pixels; i += W) {
      P sums[W];
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        sums[p] = zero();
        for (int64_t first = 0; first < tile.channels; first += W) {
          sums[p] = Norm<kNorm>::accumulate(sums[p], DISCLOSS_CPU_TARGET::load<W>(row(tile, i + p) + first));
        }
      }
      store_hinges<kNorm>(tile, i, sum_of_each(sums), margin);
    }
  }

  // pull += sum over the run of h_i d|v_i|
  static DISCLOSS_INLINE void add_pull(const TileT& tile, const Run& run, double* pull) {
    add_over_run(run, tile.channels, pull,
                 [&](int64_t i, int64_t first) __attribute__((always_inline)) {
                   return P(tile.scales[i]) *
                          Norm<kNorm>::direction(DISCLOSS_CPU_TARGET::load<W>(row(tile, i) + first));
                 });
  }

  // The gradient of a run: factor h_i d|v_i| + shared; 0 where ignored. To pixel-major memory, or,
  // to be written by store_transposed, into the tile.
  template <typename value_t>
  static DISCLOSS_INLINE void write_gradient(const TileT& tile, const Run& run,
                                             const GradientTables<accscalar_t>& tables,
                                             value_t* gradient, int64_t pitch, int64_t channels) {
    for (int64_t first = 0; first < tile.channels; first += W) {
      const bool ignored = run.slot < 0;
      const P shared = ignored ? zero()
                               : DISCLOSS_CPU_TARGET::load<W>(tables.shared + run.slot * tile.padded + first);
      const accscalar_t factor = ignored ? accscalar_t(0) : tables.factors[run.slot];
      for (int64_t i = run.begin; i < run.end; ++i) {
        const P direction = Norm<kNorm>::direction(DISCLOSS_CPU_TARGET::load<W>(row(tile, i) + first));
        const P value = P(factor * tile.scales[i]) * direction + shared;
        store_first(gradient + i * pitch + first, ignored ? zero() : value, channels - first);
      }
    }
  }

  // The tile into channels-first memory.
  static DISCLOSS_INLINE void store_transposed(const TileT& tile,
                                               const GradientPixels<scalar_t>& out) {
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
            store_first(out.gradient + (first + c) * out.channel_stride + i, block[c],
                        tile.pixels - i);
          }
        }
      }
    }
  }
};

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
