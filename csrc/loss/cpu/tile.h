// What the two layouts of a tile have in common: its runs, and the hinges of its pixels.
#pragma once

#include "common/cpu/simd.h"
#include "common/cpu/storage.h"
#include "kernels.h"
#include "loss/loss_math.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// Sums are made of at most this many numbers a lane before they go to a double: rounding does not
// grow with the number of pixels.
constexpr int kShortSum = 4;

// A tile of `pixels` pixels in the scratch of its thread. Small structures like this one are passed
// by value: a store of a vector might change what a reference refers to.
template <typename accscalar_t>
struct Tile {
  accscalar_t* values;
  accscalar_t* scales;   // [pixels]
  accscalar_t* squares;  // [pixels]
  const int32_t* slots;  // [pixels]
  const Run* runs;       // [run_count], found unless `singly`
  int64_t run_count;
  bool singly;  // runs are so short that pixels are better taken one by one
  int64_t pixels;
  int64_t channels;  // D
  int64_t padded;    // padded_channels(D)
  int64_t pitch;     // tile_pitch(D)
};

// Channels-first memory is read and written in short pieces of D far rows, which no hardware
// prefetcher follows; so what comes this much later is asked for, into the L2 cache.
constexpr int64_t kPixelsAhead = 64;
constexpr int64_t kTileAhead = 256;  // a tile of 16 channels

DISCLOSS_INLINE void prefetch(const void* address) {
  constexpr int kIntoL2 = 2;
  __builtin_prefetch(address, 0, kIntoL2);
}

// W elements; what comes `ahead` of them is asked for.
template <int W, typename scalar_t>
DISCLOSS_INLINE auto load_ahead(const scalar_t* from, int64_t ahead) {
  prefetch(from + ahead);
  return load<W>(from);
}

// Bit j is set where the slot of pixel i + j is not that of the one before, j < 64 and i + j <
// pixels. Many pixels at a time because a loop over bits ends with a branch that nothing can
// predict.
DISCLOSS_INLINE uint64_t changes(const int32_t* slots, int64_t i, int64_t pixels) {
  constexpr int W = kLanes<int32_t>;
  uint64_t bits = 0;
  const int64_t count = pixels - i < 64 ? pixels - i : 64;
  int64_t j = 0;
  for (; j + W <= count; j += W) {
    const auto differs = load<W>(slots + i + j) != load<W>(slots + i + j - 1);
    bits |= static_cast<uint64_t>(bits_of<Pack<int32_t, W>>(differs)) << j;
  }
  for (; j < count; ++j) {
    bits |= static_cast<uint64_t>(slots[i + j] != slots[i + j - 1]) << j;
  }
  return bits;
}

// The number of runs in slots [pixels].
DISCLOSS_OUTLINE inline int64_t count_runs(const int32_t* slots, int64_t pixels) {
  constexpr int W = kLanes<int32_t>;
  using P = Pack<int32_t, W>;
  P ends(0);
  int64_t i = 1;
  for (; i + W <= pixels; i += W) {
    ends = ends + select(load<W>(slots + i) != load<W>(slots + i - 1), P(1), P(0));
  }
  int64_t count = 1 + sum_of_lanes(ends);
  for (; i < pixels; ++i) {
    count += slots[i] != slots[i - 1];
  }
  return count;
}

// slots [pixels] -> runs
DISCLOSS_OUTLINE inline void find_runs(const int32_t* slots, int64_t pixels, Run* runs) {
  int32_t begin = 0;
  for (int64_t i = 1; i < pixels; i += 64) {
    for (uint64_t bits = changes(slots, i, pixels); bits != 0; bits &= bits - 1) {
      const auto end = static_cast<int32_t>(i + __builtin_ctzll(bits));
      *runs++ = {begin, end, slots[begin]};
      begin = end;
    }
  }
  *runs = {begin, static_cast<int32_t>(pixels), slots[begin]};
}

// table[lane % kRows] += pack[lane], at most as many lanes at a time as a vector of doubles has
template <int kRows, typename T, int W>
DISCLOSS_INLINE void add_to(double* table, Pack<T, W> pack) {
  constexpr int kDoubles = W * sizeof(T) / sizeof(double);
  constexpr int kPart = kDoubles < kRows ? kDoubles : kRows;
  using Part = typename Pack<T, kPart>::Vector;
  using Doubles = Pack<double, kPart>;
  Part parts[W / kPart];
  std::memcpy(parts, &pack, sizeof(pack));
#pragma GCC unroll 2
  for (int part = 0; part < W / kPart; ++part) {
    double* to = table + part * kPart % kRows;
    const auto addend = Doubles::of(__builtin_convertvector(parts[part], typename Doubles::Vector));
    store(to, load<kPart>(static_cast<const double*>(to)) + addend);
  }
}

// Sum of a value of each pixel of a run; the values may be read a vector past its end.
template <typename accscalar_t>
DISCLOSS_INLINE double sum_over_run(const accscalar_t* values, Run run) {
  constexpr int W = kLanes<accscalar_t>;
  using P = Pack<accscalar_t, W>;
  double total = 0;
  if (run.end - run.begin <= W / 2) {
    for (int64_t i = run.begin; i < run.end; ++i) {
      total += static_cast<double>(values[i]);
    }
    return total;
  }
  for (int64_t begin = run.begin; begin < run.end; begin += kShortSum * W) {
    P sum(accscalar_t(0));
    for (int64_t i = begin; i < run.end && i < begin + kShortSum * W; i += W) {
      sum = sum + select(first_lanes<P>(run.end - i), load<W>(values + i), P(accscalar_t(0)));
    }
    total += static_cast<double>(sum_of_lanes(sum));
  }
  return total;
}

// Calls body(its number, run) for the runs that are not ignored.
template <typename T, typename Body>
DISCLOSS_INLINE void for_each_run(Tile<T> tile, const Body& body) {
  for (int64_t r = 0; r < tile.run_count; ++r) {
    const Run run = tile.runs[r];
    if (run.slot >= 0) {
      body(r, run);
    }
  }
}

// *total += sum over the run of h_i^2; returns whether any pixel is outside its margin. The square
// of a small hinge may be 0. squares, scales: of the tile
template <typename T>
DISCLOSS_OUTLINE bool add_squares(const T* squares, const T* scales, Run run, double* total) {
  const double sum = sum_over_run(squares, run);
  *total += sum;
  return sum != 0 || sum_over_run(scales, run) != 0;
}

// The hinge of W pixels from the sums of their norms.
template <int kNorm, typename accscalar_t, int W>
DISCLOSS_INLINE void store_hinges(Tile<accscalar_t> tile, int64_t pixel, Pack<accscalar_t, W> sums,
                                  accscalar_t delta) {
  using P = Pack<accscalar_t, W>;
  const P norm = Norm<kNorm>::finish(sums);
  const P h = hinge(norm - P(delta));
  store(tile.scales + pixel, Norm<kNorm>::scale(h, norm));
  store(tile.squares + pixel, h * h);
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
