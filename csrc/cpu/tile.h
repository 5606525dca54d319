// What the two layouts of a tile have in common: its runs, and the hinges of its pixels.
#pragma once

#include "kernels.h"
#include "loss_math.h"
#include "simd.h"
#include "storage.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

template <typename T>
inline constexpr int kLanes = DISCLOSS_CPU_VECTOR_BYTES / sizeof(T);

// Sums are made of at most this many numbers a lane before they go to a double: rounding does not
// grow with the number of pixels.
constexpr int kShortSum = 4;

// A tile of `pixels` pixels in the scratch of its thread.
template <typename accscalar_t>
struct Tile {
  accscalar_t* values;
  accscalar_t* scales;   // [pixels]
  accscalar_t* squares;  // [pixels]
  const Run* runs;       // [run_count]
  int64_t run_count;
  int64_t pixels;
  int64_t channels;  // D
  int64_t padded;    // padded_channels(D)
};

// The end of the run of slots that begins at `begin`.
DISCLOSS_INLINE int64_t end_of_run(const int32_t* slots, int64_t begin, int64_t pixels) {
  constexpr int kLanes = DISCLOSS_CPU_VECTOR_BYTES / 4;
  const int32_t slot = slots[begin];
  int64_t i = begin + 1;
  for (; i + kLanes <= pixels; i += kLanes) {
    int32_t differs = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      differs |= slots[i + lane] ^ slot;
    }
    if (differs != 0) {
      break;
    }
  }
  while (i < pixels && slots[i] == slot) {
    ++i;
  }
  return i;
}

// slots [pixels] -> runs; returns how many.
DISCLOSS_INLINE int64_t find_runs(const int32_t* slots, int64_t pixels, Run* runs) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < pixels;) {
    const int64_t end = end_of_run(slots, begin, pixels);
    runs[count++] = {static_cast<int32_t>(begin), static_cast<int32_t>(end), slots[begin]};
    begin = end;
  }
  return count;
}

// table[lane] += pack[lane]
template <typename T, int W>
DISCLOSS_INLINE void add_to(double* table, Pack<T, W> pack) {
  T lanes[W];
  std::memcpy(lanes, &pack, sizeof(pack));
  for (int lane = 0; lane < W; ++lane) {
    table[lane] += static_cast<double>(lanes[lane]);
  }
}

// Sum over the pixels of a run of per-pixel values, which may be read a vector past the run.
template <typename accscalar_t>
DISCLOSS_INLINE double sum_over_run(const accscalar_t* values, const Run& run) {
  constexpr int W = kLanes<accscalar_t>;
  using P = Pack<accscalar_t, W>;
  double total = 0;
  for (int64_t begin = run.begin; begin < run.end; begin += kShortSum * W) {
    P sum(accscalar_t(0));
    for (int64_t i = begin; i < run.end && i < begin + kShortSum * W; i += W) {
      sum = sum + select(first_lanes<P>(run.end - i), load<W>(values + i), P(accscalar_t(0)));
    }
    total += static_cast<double>(sum_of_lanes(sum));
  }
  return total;
}

// The hinge of W pixels from the sums of their norms.
template <int kNorm, typename accscalar_t, int W>
DISCLOSS_INLINE void store_hinges(const Tile<accscalar_t>& tile, int64_t pixel,
                                  Pack<accscalar_t, W> sums, const Margin<accscalar_t>& margin) {
  using P = Pack<accscalar_t, W>;
  const P norm = Norm<kNorm>::finish(sums);
  const P h = hinge(P(margin.sign) * (norm - P(margin.delta)));
  store(tile.scales + pixel, Norm<kNorm>::scale(h, norm));
  store(tile.squares + pixel, h * h);
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
