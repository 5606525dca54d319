// Blocks of pixels whose channels, 8 or 16, all stay in registers: channels-first embeddings where
// runs are too short to be read channel after channel.
#pragma once

#include "blocks.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

template <typename scalar_t, int kNorm, int kChannels>
struct ChannelsInRegisters {
  using T = accumulate_t<scalar_t>;
  static constexpr int W = kLanes<T>;
  static constexpr int kRows = kChannels < W ? kChannels : W;  // channels summed side by side
  using P = Pack<T, W>;
  using Runs = RunsOfBlock<T>;

  static DISCLOSS_INLINE P zero() { return P(T(0)); }

  // x_i - mu of W pixels, each channel; x: channel 0 of the first.
  struct Differences {
    P v[kChannels];

    DISCLOSS_INLINE Differences(const scalar_t* x, int64_t stride,
                                const Columns<T, kChannels>& mean, int64_t ahead) {
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        v[d] = load_ahead<W>(x, ahead) - mean.of_channel[d];
        x += stride;
      }
    }

    DISCLOSS_INLINE P norm() const {
      P even = zero(), odd = zero();  // two sums, for neither waits for the other
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; d += 2) {
        even = Norm<kNorm>::accumulate(even, v[d]);
        odd = Norm<kNorm>::accumulate(odd, v[d + 1]);
      }
      return Norm<kNorm>::finish(even + odd);
    }
  };

  // What is summed over runs: a vector of pixels for each channel, and one more.
  struct Terms {
    P of_channel[kChannels];
    P square;

    DISCLOSS_INLINE void clear() {
      square = zero();
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        of_channel[d] = zero();
      }
    }
    DISCLOSS_INLINE void add(const Terms& terms, typename P::Mask lanes) {
      square = square + select(lanes, terms.square, zero());
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        of_channel[d] = of_channel[d] + select(lanes, terms.of_channel[d], zero());
      }
    }
    // table [padded] += the sums of each channel
    DISCLOSS_INLINE void add_channels_to(double* table) const {
#pragma GCC unroll 4
      for (int first = 0; first < kChannels; first += kRows) {
        P rows[kRows];
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          rows[r] = of_channel[first + r];
        }
        add_to<kRows>(table + first, sum_of_each(rows));
      }
    }
  };

  // Calls flush(slot, sums) with the sums, as vectors, of terms_of(block) over each run that is not
  // ignored. They stay in registers while a run lasts, and have 8 numbers a lane at most.
  template <typename TermsOf, typename Flush>
  static DISCLOSS_INLINE void sum_runs(Tile<T> tile, const TermsOf& terms_of, const Flush& flush) {
    constexpr int64_t kPiece = 8 * W;
    Terms sums;
    sums.clear();
    for_each_block(tile, [&](Runs runs) __attribute__((always_inline)) {
      const Terms terms = terms_of(runs);
      const bool full = (runs.i + W) % kPiece == 0;
      for (const Run* run = runs.first; run <= runs.last; ++run) {
        sums.add(terms, runs.lanes(run));
        if (full || run->end <= runs.i + W) {
          if (run->slot >= 0) {
            flush(run->slot, sums);
          }
          sums.clear();
        }
      }
    });
  }

  // sums [K, padded] += x_i
  static DISCLOSS_OUTLINE void add_sums(Pixels<scalar_t> pixels, Tile<T> tile, double* sums) {
    sum_runs(
        tile,
        [=](Runs runs) __attribute__((always_inline)) {
          Terms terms;
          terms.square = zero();
          const scalar_t* x = pixels.embeddings + runs.i;
#pragma GCC unroll 16
          for (int d = 0; d < kChannels; ++d) {
            terms.of_channel[d] = load_ahead<W>(x, kTileAhead);
            x += pixels.channel_stride;
          }
          return terms;
        },
        [=](int64_t slot, const Terms& run)
            __attribute__((always_inline)) { run.add_channels_to(sums + slot * tile.padded); });
  }

  // squares [K] += h_i^2, pull [K, padded] += h_i d|v_i|. means [K, padded]
  static DISCLOSS_OUTLINE void add_pull(Pixels<scalar_t> pixels, Tile<T> tile, const T* means,
                                        T delta, HingeSums sums) {
    sum_runs(
        tile,
        [=](Runs runs) __attribute__((always_inline)) {
          const Columns<T, kChannels> mean(runs, means, tile.padded);
          const Differences x(pixels.embeddings + runs.i, pixels.channel_stride, mean,
                              kPixelsAhead);
          const P norm = x.norm();
          const P h = hinge(norm - P(delta));
          const P scale = Norm<kNorm>::scale(h, norm);
          Terms terms;
          terms.square = h * h;
#pragma GCC unroll 16
          for (int d = 0; d < kChannels; ++d) {
            terms.of_channel[d] = scale * Norm<kNorm>::direction(x.v[d]);
          }
          return terms;
        },
        [=](int64_t slot, const Terms& run) __attribute__((always_inline)) {
          sums.squares[slot] += static_cast<double>(sum_of_lanes(run.square));
          run.add_channels_to(sums.directions + slot * tile.padded);
        });
  }

  // gradient = factor h_i d|v_i| + shared, or 0 where ignored
  static DISCLOSS_OUTLINE void write_gradient(Pixels<scalar_t> pixels, Tile<T> tile,
                                              GradientTables<T> tables, T delta,
                                              GradientPixels<scalar_t> out, bool backwards) {
    const int64_t ahead = backwards ? kTileAhead : kPixelsAhead;
    const auto write = [=](Runs runs) __attribute__((always_inline)) {
      const Columns<T, kChannels> mean(runs, tables.means, tile.padded);
      const Differences x(pixels.embeddings + runs.i, pixels.channel_stride, mean, ahead);
      const P norm = x.norm();
      const P scale = Columns<T, 1>(runs, tables.factors, 1).of_channel[0] *
                      Norm<kNorm>::scale(hinge(norm - P(delta)), norm);
      const Columns<T, kChannels> shared(runs, tables.shared, tile.padded);
      P gradient[kChannels];
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        gradient[d] = scale * Norm<kNorm>::direction(x.v[d]) + shared.of_channel[d];
      }
      clear_ignored(runs, gradient);
      scalar_t* row = out.gradient + runs.i;
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        store(row, gradient[d]);
        row += out.channel_stride;
      }
    };
    for_each_block(tile, write, backwards);
  }

  // The gradient of ignored pixels is 0.
  static DISCLOSS_INLINE void clear_ignored(Runs runs, P (&gradient)[kChannels]) {
    for (const Run* run = runs.first; run <= runs.last; ++run) {
      if (run->slot < 0) {
        const auto ignored = runs.lanes(run);
#pragma GCC unroll 16
        for (int d = 0; d < kChannels; ++d) {
          gradient[d] = select(ignored, zero(), gradient[d]);
        }
      }
    }
  }
};

// A load waits for the stores before it whose addresses have the same last 12 bits, so what is
// written a little ahead of what is read is better written from the end; out of the cache, that
// costs more than it saves. What is written is the same either way.
template <typename scalar_t>
DISCLOSS_INLINE bool better_backwards(const Pixels<scalar_t>& pixels, const scalar_t* written) {
  constexpr uintptr_t kPage = 4096;
  constexpr int64_t kCached = 1 << 19;  // bytes
  const uintptr_t ahead =
      (reinterpret_cast<uintptr_t>(written) - reinterpret_cast<uintptr_t>(pixels.embeddings)) %
      kPage;
  const auto bytes = pixels.count * pixels.channels * static_cast<int64_t>(sizeof(scalar_t));
  return bytes <= kCached && ahead != 0 && ahead < kPage / 2;
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
