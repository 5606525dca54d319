// A tile with one row for each pixel, values [pixels, padded]: vectors of neighbouring channels,
// for channels-last and packed embeddings, and for ids that change from pixel to pixel.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// Rows of `channels` elements, one for each pixel. kWhole: they are whole vectors.
template <typename value_t, bool kWhole>
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
    if (kWhole || first + W <= channels) {
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
  static DISCLOSS_INLINE accscalar_t* row(TileT tile, int64_t i) {
    return tile.values + i * tile.padded;
  }

  // Calls body(rows) with the pixels as they lie in memory, or transposed in the tile.
  template <typename Body>
  static DISCLOSS_INLINE void with_rows(Pixels<scalar_t> pixels, TileT tile, const Body& body) {
    if (pixels.pixel_stride == 1) {
      load_transposed(pixels, tile);
      body(Rows<accscalar_t, true>{tile.values, tile.padded, tile.channels, nullptr});
    } else if (tile.channels % W == 0) {
      body(Rows<scalar_t, true>{pixels.embeddings, pixels.pixel_stride, tile.channels, pixels.end});
    } else {
      body(
          Rows<scalar_t, false>{pixels.embeddings, pixels.pixel_stride, tile.channels, pixels.end});
    }
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
          prefetch(x + kTilesAhead * tile.pitch);
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

  // Calls group(slot, i, 4) for 4 neighbours in one slot and group(slot, i, 1) for any other pixel;
  // not for ignored ones. Where runs are short their ends cannot be predicted, so none is looked
  // for.
  template <typename Group>
  static DISCLOSS_INLINE void for_each_group(TileT tile, const Group& group) {
    using Four = std::integral_constant<int, 4>;
    using One = std::integral_constant<int, 1>;
    const auto one = [&](int64_t i) __attribute__((always_inline)) {
      if (tile.slots[i] >= 0) {
        group(tile.slots[i], i, One{});
      }
    };
    int64_t i = 0;
    for (; i + 4 <= tile.pixels; i += 4) {
      const int32_t* slots = tile.slots + i;
      if (((slots[0] ^ slots[1]) | (slots[0] ^ slots[2]) | (slots[0] ^ slots[3])) != 0) {
        one(i);
        one(i + 1);
        one(i + 2);
        one(i + 3);
      } else if (slots[0] >= 0) {
        group(slots[0], i, Four{});
      }
    }
    for (; i < tile.pixels; ++i) {
      one(i);
    }
  }

  // term(i) + ... + term(i + count - 1), count 4 or 1
  template <typename Count, typename Term>
  static DISCLOSS_INLINE auto sum_of(int64_t i, Count, const Term& term) {
    if constexpr (Count::value == 4) {
      return (term(i) + term(i + 1)) + (term(i + 2) + term(i + 3));
    } else {
      return term(i);
    }
  }

  // counts [K] += N_k . sums [K, padded] += sum of x_i
  template <typename RowsT>
  static DISCLOSS_INLINE void add_sums(RowsT rows, TileT tile, int64_t* counts, double* sums) {
    for_each_group(tile, [=](int64_t slot, int64_t i, auto count) __attribute__((always_inline)) {
      counts[slot] += count;
      for (int64_t first = 0; first < tile.channels; first += W) {
        add_to(sums + slot * tile.padded + first,
               sum_of(i, count, [=](int64_t pixel) __attribute__((always_inline)) {
                 return rows.template load<W>(pixel, first);
               }));
      }
    });
  }

  // Scales and squares of all pixels; of ignored ones they mean nothing. means [K, padded]
  template <typename RowsT>
  static DISCLOSS_INLINE void find_hinges(RowsT rows, TileT tile, const accscalar_t* means,
                                          Margin<accscalar_t> margin) {
    for (int64_t begin = 0; begin < tile.pixels; begin += W) {
      P sums[W];
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        const int64_t i = begin + p < tile.pixels ? begin + p : tile.pixels - 1;
        const int64_t slot = tile.slots[i] < 0 ? 0 : tile.slots[i];
        const accscalar_t* mean = means + slot * tile.padded;
        sums[p] = zero();
        for (int64_t first = 0; first < tile.channels; first += W) {
          sums[p] =
              Norm<kNorm>::accumulate(sums[p], rows.template load<W>(i, first) -
                                                   DISCLOSS_CPU_TARGET::load<W>(mean + first));
        }
      }
      store_hinges<kNorm>(tile, begin, sum_of_each(sums), margin);
    }
  }

  // squares [K] += sum of h_i^2 . pull [K, padded] += sum of h_i d|v_i|. means [K, padded]
  template <typename RowsT>
  static DISCLOSS_INLINE void add_pull(RowsT rows, TileT tile, const accscalar_t* means,
                                       double* squares, double* pull) {
    for_each_group(tile, [=](int64_t slot, int64_t i, auto count) __attribute__((always_inline)) {
      const auto scale = [=](int64_t pixel)
                             __attribute__((always_inline)) { return tile.scales[pixel]; };
      // All scales are 0 where every pixel is inside its margin: they have nothing to add.
      if (sum_of(i, count, scale) == 0) {
        return;
      }
      squares[slot] +=
          static_cast<double>(sum_of(i, count, [=](int64_t pixel) __attribute__((always_inline)) {
            return tile.squares[pixel];
          }));
      for (int64_t first = 0; first < tile.channels; first += W) {
        const int64_t at = slot * tile.padded + first;
        const P mean = DISCLOSS_CPU_TARGET::load<W>(means + at);
        add_to(pull + at, sum_of(i, count, [=](int64_t pixel) __attribute__((always_inline)) {
                 const P v = rows.template load<W>(pixel, first) - mean;
                 return P(scale(pixel)) * Norm<kNorm>::direction(v);
               }));
      }
    });
  }

  // gradient = factor h_i d|v_i| + shared, 0 where ignored
  template <typename RowsT, typename result_t>
  static DISCLOSS_INLINE void write_gradient(RowsT rows, TileT tile,
                                             GradientTables<accscalar_t> tables, result_t* gradient,
                                             int64_t pitch) {
    for (int64_t i = 0; i < tile.pixels; ++i) {
      const int64_t slot = tile.slots[i];
      for (int64_t first = 0; first < tile.channels; first += W) {
        P value = zero();
        if (slot >= 0) {
          const int64_t at = slot * tile.padded + first;
          const P v =
              rows.template load<W>(i, first) - DISCLOSS_CPU_TARGET::load<W>(tables.means + at);
          value = P(tables.factors[slot] * tile.scales[i]) * Norm<kNorm>::direction(v) +
                  DISCLOSS_CPU_TARGET::load<W>(tables.shared + at);
        }
        store_first(gradient + i * pitch + first, value, tile.channels - first);
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
            prefetch(gradient + kTilesAhead * tile.pitch);
            store_first(gradient, block[c], tile.pixels - i);
          }
        }
      }
    }
  }
};

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
