// Blocks of W neighbouring pixels of a tile, from a multiple of W on. Where runs meet inside a
// block, what a table has for its lanes is put together from the rows of all of them.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// The runs that meet in the W pixels from i on, the last one included.
template <typename T>
struct RunsOfBlock {
  using P = Pack<T, kLanes<T>>;

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
template <typename T, typename Body>
DISCLOSS_INLINE void for_each_block(Tile<T> tile, const Body& body, bool backwards = false) {
  constexpr int W = kLanes<T>;
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
    body(RunsOfBlock<T>{i, first, last});
    if (!backwards) {
      first = last->end == end ? last + 1 : last;
    }
  }
}

// The runs that meet in a block, for any number of channels. kMost: as many runs as there may be,
// 1 in most blocks. Copied out of memory, where the compiler must expect every store to change
// them.
template <typename T, int kMost>
struct Block {
  using P = Pack<T, kLanes<T>>;

  int count;
  int32_t slots[kMost];
  typename P::Mask begun[kMost];  // the lanes before the end of a run
  T kept[kMost];                  // 0 if ignored, else 1
  bool all_kept = true;

  DISCLOSS_INLINE explicit Block(RunsOfBlock<T> runs) : count(runs.count()) {
    for (int r = 0; r < size(); ++r) {
      const Run* run = runs.first + r;
      slots[r] = static_cast<int32_t>(runs.slot(run));
      begun[r] = runs.begun(run);
      kept[r] = run->slot < 0 ? T(0) : T(1);
      all_kept &= run->slot >= 0;
    }
  }

  DISCLOSS_INLINE int size() const { return kMost <= 2 ? kMost : count; }

  // The row of each run in a table; that of an ignored one is of no use.
  struct Rows {
    const T* of_run[kMost];
  };
  DISCLOSS_INLINE Rows rows(const T* table, int64_t pitch) const {
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

// Calls body(first pixel, block) for each block, with as many runs as there are known to the
// compiler, up to 2.
template <typename T, typename Body>
DISCLOSS_INLINE void for_each_known_block(Tile<T> tile, const Body& body) {
  for_each_block(tile, [=](RunsOfBlock<T> runs) __attribute__((always_inline)) {
    switch (runs.count()) {
      case 1:
        return body(runs.i, Block<T, 1>(runs));
      case 2:
        return body(runs.i, Block<T, 2>(runs));
      default:
        return body(runs.i, Block<T, kLanes<T>>(runs));
    }
  });
}

// A vector for each channel: what a table has for the pixels of a block. table [K, pitch]
template <typename T, int kChannels>
struct Columns {
  using P = Pack<T, kLanes<T>>;

  P of_channel[kChannels];

  DISCLOSS_INLINE Columns(RunsOfBlock<T> runs, const T* table, int64_t pitch) {
    const T* row = table + runs.slot(runs.first) * pitch;
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

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
