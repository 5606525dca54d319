// Tiles whose channels are rows, [D, stride]: vectors of neighbouring pixels, for channels-first
// embeddings where runs are long.
//
// A block is W pixels from a multiple of W on; where runs meet inside it, what the tables have for
// its lanes is put together from the rows of all of them.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// kRows: the channels that are summed side by side, at most W.
template <typename scalar_t, int kNorm, int kRows>
struct ChannelMajor {
  using accscalar_t = accumulate_t<scalar_t>;
  static constexpr int W = kLanes<accscalar_t>;
  using P = Pack<accscalar_t, W>;

  // A tile of 16 channels is read a tile ahead.
  static constexpr int64_t kTileAhead = 256;

  static DISCLOSS_INLINE P zero() { return P(accscalar_t(0)); }
  static DISCLOSS_INLINE accscalar_t* at(Tile<accscalar_t> tile, int64_t d, int64_t i) {
    return tile.values + d * tile.pitch + i;
  }
  static DISCLOSS_INLINE P x(Tile<accscalar_t> tile, int64_t d, int64_t i) {
    return load<W>(at(tile, d, i));
  }

  // W pixels of a channel in memory; what comes `ahead` of them is asked for.
  static DISCLOSS_INLINE P load_x(const scalar_t* x, int64_t ahead) {
    prefetch(x + ahead);
    return load<W>(x);
  }

  // The runs that meet in the W pixels from i on, the last one included.
  struct RunsOfBlock {
    int64_t i;
    const Run* first;
    const Run* last;

    DISCLOSS_INLINE int count() const { return static_cast<int>(last - first) + 1; }
    // The slot of a run, 0 if it is ignored: what comes of it is of no use.
    static DISCLOSS_INLINE int64_t slot(const Run* run) { return run->slot < 0 ? 0 : run->slot; }
    // True in the lanes before the end of a run.
    DISCLOSS_INLINE typename P::Mask begun(const Run* run) const {
      return first_lanes<P>(run->end - i);
    }
    // True in the lanes of a run.
    DISCLOSS_INLINE typename P::Mask lanes(const Run* run) const {
      return lanes_between<P>(run->begin - i, run->end - i);
    }
  };

  // Calls body(runs) for each block of pixels, from the last one if `backwards`.
  template <typename Body>
  static DISCLOSS_INLINE void for_each_block(Tile<accscalar_t> tile, const Body& body,
                                             bool backwards = false) {
    const int64_t blocks = (tile.pixels + W - 1) / W;
    const Run* first = backwards ? tile.runs + tile.run_count - 1 : tile.runs;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t i = (backwards ? blocks - 1 - block : block) * W;
      const int64_t end = i + W < tile.pixels ? i + W : tile.pixels;
      while (first->begin > i) {
        --first;
      }
      const Run* last = first;
      while (last->end < end) {
        ++last;
      }
      body(RunsOfBlock{i, first, last});
      if (!backwards) {
        first = last->end == end ? last + 1 : last;
      }
    }
  }

  // The runs that meet in a block, for any number of channels. kMost: as many runs as there may be,
  // 1 in most blocks. Copied out of memory, where the compiler must expect every store to change
  // them.
  template <int kMost>
  struct Block {
    int count;
    int32_t slots[kMost];
    typename P::Mask begun[kMost];  // the lanes before the end of a run
    accscalar_t kept[kMost];        // 0 if ignored, else 1
    bool all_kept = true;

    DISCLOSS_INLINE explicit Block(RunsOfBlock runs) : count(runs.count()) {
      for (int r = 0; r < size(); ++r) {
        const Run* run = runs.first + r;
        slots[r] = static_cast<int32_t>(runs.slot(run));
        begun[r] = runs.begun(run);
        kept[r] = run->slot < 0 ? accscalar_t(0) : accscalar_t(1);
        all_kept &= run->slot >= 0;
      }
    }

    DISCLOSS_INLINE int size() const { return kMost <= 2 ? kMost : count; }

    // The row of each run in a table; that of an ignored one is of no use.
    struct Rows {
      const accscalar_t* of_run[kMost];
    };
    DISCLOSS_INLINE Rows rows(const accscalar_t* table, int64_t pitch) const {
      Rows rows;
      for (int r = 0; r < size(); ++r) {
        rows.of_run[r] = table + slots[r] * pitch;
      }
      return rows;
    }

    // value(r) in the lanes of run r.
    template <typename Value>
    DISCLOSS_INLINE P lanes(const Value& value) const {
      P values(value(0));
      for (int r = 1; r < size(); ++r) {
        values = select(begun[r - 1], values, P(value(r)));
      }
      return values;
    }
    DISCLOSS_INLINE P column(const Rows& rows, int64_t d) const {
      return lanes([&](int r) __attribute__((always_inline)) { return rows.of_run[r][d]; });
    }
    DISCLOSS_INLINE P kept_lanes() const {
      return lanes([&](int r) __attribute__((always_inline)) { return kept[r]; });
    }
  };

  // Calls body(block) with as many runs as there are known to the compiler, up to 2.
  template <typename Body>
  static DISCLOSS_INLINE void with_block(RunsOfBlock runs, const Body& body) {
    switch (runs.count()) {
      case 1:
        return body(Block<1>(runs));
      case 2:
        return body(Block<2>(runs));
      default:
        return body(Block<W>(runs));
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
        add_to<kRows>(sums + first, sum_of_each(rows));
      }
      begin = end;
    }
  }

  // Sum of kBlocks vectors from x on, in pairs: as exact as a few of them one after the other.
  template <int kBlocks>
  static DISCLOSS_INLINE P sum_in_pairs(const scalar_t* x) {
    if constexpr (kBlocks == 1) {
      return load_x(x, kTileAhead);
    } else {
      return sum_in_pairs<kBlocks / 2>(x) + sum_in_pairs<kBlocks / 2>(x + kBlocks / 2 * W);
    }
  }

  // sum + the pixels begin <= i < end, fewer than 2 kBlocks vectors. x: pixel 0
  template <int kBlocks>
  static DISCLOSS_INLINE P add_rest(const scalar_t* x, int64_t begin, int64_t end, P sum) {
    if constexpr (kBlocks == 0) {
      return begin < end
                 ? sum + select(first_lanes<P>(end - begin), load_x(x + begin, kTileAhead), zero())
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
  static DISCLOSS_INLINE P sum_of_run(const scalar_t* x, Run run) {
    constexpr int64_t kPairs = 64;  // pixels
    int64_t i = run.begin / W * W;
    P rest = zero();
    if (i < run.begin) {
      rest =
          select(lanes_between<P>(run.begin - i, run.end - i), load_x(x + i, kTileAhead), zero());
      i += W;
    }
    P sum = zero();
    for (; i + kPairs <= run.end; i += kPairs) {
      sum = sum + sum_in_pairs<kPairs / W>(x + i);
    }
    return sum + add_rest<kPairs / W / 2>(x, i, run.end, rest);
  }

  // sums [K, padded] += x_i. Straight from memory, channel after channel, so that it is read in
  // long pieces; the sum of each run and channel is kept as a vector, in `values` of the tile,
  // which has room for those of runs of W pixels.
  static DISCLOSS_INLINE void add_sums(Pixels<scalar_t> pixels, Tile<accscalar_t> tile,
                                       double* sums) {
    const int64_t pitch = tile.padded * W;
    for (int64_t d = 0; d < tile.channels; ++d) {
      for (int64_t r = 0; r < tile.run_count; ++r) {
        store(tile.values + r * pitch + d * W,
              sum_of_run(pixels.embeddings + d * pixels.channel_stride, tile.runs[r]));
      }
    }
    for (int64_t r = 0; r < tile.run_count; ++r) {
      if (tile.runs[r].slot < 0) {
        continue;
      }
      for (int64_t first = 0; first < tile.channels; first += kRows) {
        P rows[kRows];
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) {
          rows[row] = load<W>(tile.values + r * pitch + (first + row) * W);
        }
        add_to<kRows>(sums + tile.runs[r].slot * tile.padded + first, sum_of_each(rows));
      }
    }
  }

  // v_i of W pixels, all channels: so few that they stay in registers.
  template <int kChannels>
  struct Differences {
    P v[kChannels];

    // value(d, x): v_i from x_i
    template <typename Value>
    DISCLOSS_INLINE Differences(Pixels<scalar_t> pixels, int64_t i, const Value& value,
                                int64_t ahead = kPixelsAhead) {
      const scalar_t* x = pixels.embeddings + i;
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        v[d] = value(d, load_x(x, ahead));
        x += pixels.channel_stride;
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

  // A vector for each channel: what a table has for the pixels of a block. table [K, pitch]
  template <int kChannels>
  struct Columns {
    P of_channel[kChannels];

    DISCLOSS_INLINE Columns(RunsOfBlock runs, const accscalar_t* table, int64_t pitch) {
      const accscalar_t* row = table + runs.slot(runs.first) * pitch;
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        of_channel[d] = P(row[d]);
      }
      for (const Run* run = runs.first; run != runs.last; ++run) {
        row = table + runs.slot(run + 1) * pitch;
        const auto begun = runs.begun(run);
#pragma GCC unroll 16
        for (int d = 0; d < kChannels; ++d) {
          of_channel[d] = select(begun, of_channel[d], P(row[d]));
        }
      }
    }
  };

  // What is summed over runs: a vector of pixels for each channel, and one more.
  template <int kChannels>
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
  };

  // Calls flush(slot, sums) with the sums, as vectors, of terms_of(block) over each run that is not
  // ignored. They stay in registers while a run lasts, and have 8 numbers a lane at most.
  template <int kChannels, typename TermsOf, typename Flush>
  static DISCLOSS_INLINE void sum_runs(Tile<accscalar_t> tile, const TermsOf& terms_of,
                                       const Flush& flush) {
    constexpr int64_t kPiece = 8 * W;
    Terms<kChannels> sums;
    sums.clear();
    for_each_block(tile, [&](RunsOfBlock runs) __attribute__((always_inline)) {
      const Terms<kChannels> terms = terms_of(runs);
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

  // table [padded] += the sums of each channel
  template <int kChannels>
  static DISCLOSS_INLINE void add_channels(const Terms<kChannels>& sums, double* table) {
#pragma GCC unroll 4
    for (int first = 0; first < kChannels; first += kRows) {
      P rows[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        rows[r] = sums.of_channel[first + r];
      }
      add_to<kRows>(table + first, sum_of_each(rows));
    }
  }

  // sums [K, padded] += x_i, of runs that are too short to be read channel after channel.
  template <int kChannels>
  static DISCLOSS_INLINE void add_sums_of_blocks(Pixels<scalar_t> pixels, Tile<accscalar_t> tile,
                                                 double* sums) {
    sum_runs<kChannels>(
        tile,
        [=](RunsOfBlock runs) __attribute__((always_inline)) {
          Terms<kChannels> terms;
          terms.square = zero();
          const scalar_t* x = pixels.embeddings + runs.i;
#pragma GCC unroll 16
          for (int d = 0; d < kChannels; ++d) {
            terms.of_channel[d] = load_x(x, kTileAhead);
            x += pixels.channel_stride;
          }
          return terms;
        },
        [=](int64_t slot, const auto& run)
            __attribute__((always_inline)) { add_channels(run, sums + slot * tile.padded); });
  }

  // squares [K] += h_i^2, pull [K, padded] += h_i d|v_i|. means [K, padded]
  template <int kChannels>
  static DISCLOSS_INLINE void add_pull(Pixels<scalar_t> pixels, Tile<accscalar_t> tile,
                                       const accscalar_t* means, accscalar_t delta, double* squares,
                                       double* pull) {
    sum_runs<kChannels>(
        tile,
        [=](RunsOfBlock runs) __attribute__((always_inline)) {
          const Columns<kChannels> mean(runs, means, tile.padded);
          const Differences<kChannels> x(pixels, runs.i,
                                         [&](int d, P value) __attribute__((always_inline)) {
                                           return value - mean.of_channel[d];
                                         });
          const P norm = x.norm();
          const P h = hinge(norm - P(delta));
          const P scale = Norm<kNorm>::scale(h, norm);
          Terms<kChannels> terms;
          terms.square = h * h;
#pragma GCC unroll 16
          for (int d = 0; d < kChannels; ++d) {
            terms.of_channel[d] = scale * Norm<kNorm>::direction(x.v[d]);
          }
          return terms;
        },
        [=](int64_t slot, const auto& run) __attribute__((always_inline)) {
          squares[slot] += static_cast<double>(sum_of_lanes(run.square));
          add_channels(run, pull + slot * tile.padded);
        });
  }

  // A load waits for the stores before it whose addresses have the same last 12 bits, so what is
  // written a little ahead of what is read is better written from the end; out of the cache, that
  // costs more than it saves. What is written is the same either way.
  static DISCLOSS_INLINE bool better_backwards(Pixels<scalar_t> pixels, const scalar_t* written) {
    constexpr uintptr_t kPage = 4096;
    constexpr int64_t kCached = 1 << 19;  // bytes
    const uintptr_t ahead =
        (reinterpret_cast<uintptr_t>(written) - reinterpret_cast<uintptr_t>(pixels.embeddings)) %
        kPage;
    const auto bytes = pixels.count * pixels.channels * static_cast<int64_t>(sizeof(scalar_t));
    return bytes <= kCached && ahead != 0 && ahead < kPage / 2;
  }

  // gradient = factor h_i d|v_i| + shared, or 0 where ignored
  template <int kChannels>
  static DISCLOSS_INLINE void write_gradient(Pixels<scalar_t> pixels, Tile<accscalar_t> tile,
                                             GradientTables<accscalar_t> tables, accscalar_t delta,
                                             GradientPixels<scalar_t> out, bool backwards) {
    const int64_t ahead = backwards ? kTileAhead : kPixelsAhead;
    const auto write = [=](RunsOfBlock runs) __attribute__((always_inline)) {
      const Columns<kChannels> mean(runs, tables.means, tile.padded);
      const Differences<kChannels> x(
          pixels, runs.i,
          [&](int d, P value) __attribute__((always_inline)) { return value - mean.of_channel[d]; },
          ahead);
      const P norm = x.norm();
      const P scale = Columns<1>(runs, tables.factors, 1).of_channel[0] *
                      Norm<kNorm>::scale(hinge(norm - P(delta)), norm);
      const Columns<kChannels> shared(runs, tables.shared, tile.padded);
      P gradient[kChannels];
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        gradient[d] = scale * Norm<kNorm>::direction(x.v[d]) + shared.of_channel[d];
      }
      for (const Run* run = runs.first; run <= runs.last; ++run) {
        if (run->slot < 0) {
          const auto ignored = runs.lanes(run);
#pragma GCC unroll 16
          for (int d = 0; d < kChannels; ++d) {
            gradient[d] = select(ignored, zero(), gradient[d]);
          }
        }
      }
      scalar_t* row = out.gradient + runs.i;
#pragma GCC unroll 16
      for (int d = 0; d < kChannels; ++d) {
        store(row, gradient[d]);
        row += out.channel_stride;
      }
    };
    for_each_block(tile, write, backwards);
  }

  // values = x_i, and scales and squares of all pixels, of ignored ones anything. means [K, padded]
  static DISCLOSS_INLINE void load_and_find_hinges(Pixels<scalar_t> pixels, Tile<accscalar_t> tile,
                                                   const accscalar_t* means, accscalar_t delta) {
    const auto find = [=](int64_t i, auto block) __attribute__((always_inline)) {
      const auto rows = block.rows(means, tile.padded);
      P sums = zero();
#pragma GCC unroll 4
      for (int64_t d = 0; d < tile.channels; ++d) {
        const P value = load_x(pixels.embeddings + d * pixels.channel_stride + i, kPixelsAhead);
        store(at(tile, d, i), value);
        sums = Norm<kNorm>::accumulate(sums, value - block.column(rows, d));
      }
      store_hinges<kNorm>(tile, i, sums, delta);
    };
    for_each_block(tile, [=](RunsOfBlock runs) __attribute__((always_inline)) {
      with_block(runs, [=](auto block) __attribute__((always_inline)) { find(runs.i, block); });
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

  // gradient = factor h_i d|v_i| + shared, or 0 where ignored
  static DISCLOSS_INLINE void write_gradient(Tile<accscalar_t> tile,
                                             GradientTables<accscalar_t> tables,
                                             GradientPixels<scalar_t> out) {
    const auto write = [=](int64_t i, auto block) __attribute__((always_inline)) {
      const auto means = block.rows(tables.means, tile.padded);
      const auto shared = block.rows(tables.shared, tile.padded);
      const P scale = block.column(block.rows(tables.factors, 1), 0) * load<W>(tile.scales + i);
      const P kept = block.kept_lanes();
      for (int64_t d = 0; d < tile.channels; ++d) {
        const P v = x(tile, d, i) - block.column(means, d);
        P values = scale * Norm<kNorm>::direction(v) + block.column(shared, d);
        if (!block.all_kept) {
          values = select(kept == zero(), zero(), values);
        }
        scalar_t* row = out.gradient + d * out.channel_stride;
        prefetch(row + i + kPixelsAhead);
        store(row + i, values);
      }
    };
    for_each_block(tile, [=](RunsOfBlock runs) __attribute__((always_inline)) {
      with_block(runs, [=](auto block) __attribute__((always_inline)) { write(runs.i, block); });
    });
  }
};

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
