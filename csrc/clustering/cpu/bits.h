// Sets of pixels, a bit each.
#pragma once

#include "block.h"

namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET {

inline int64_t count_bits(const uint64_t* bits, int64_t words) {
  int64_t count = 0;
  for (int64_t word = 0; word < words; ++word) {
    count += __builtin_popcountll(bits[word]);
  }
  return count;
}

// The place of bit n of those that are set: of six halves, which has it?
DISCLOSS_INLINE int64_t place_of_bit(uint64_t bits, int64_t n) {
  int64_t place = 0;
#pragma GCC unroll 6
  for (int width = 32; width > 0; width /= 2) {
    const int64_t low = __builtin_popcountll(bits & ((uint64_t{1} << width) - 1));
    const bool above = n >= low;
    n -= above ? low : 0;
    bits >>= above ? width : 0;
    place += above ? width : 0;
  }
  return place;
}

// Writes the numbers of every step-th pixel of the set.
inline void every_bit(const uint64_t* bits, int64_t words, int64_t step, int64_t* pixels) {
  int64_t next = 0, seen = 0;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t here = __builtin_popcountll(bits[word]);
    for (; next < seen + here; next += step) {
      *pixels++ = word * 64 + place_of_bit(bits[word], next - seen);
    }
    seen += here;
  }
}

}  // namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET
