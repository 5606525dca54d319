// Blocks of points: kBlock float32 numbers side by side in the vectors that there are. A squared
// distance is a sum over channels, in order, of which each operation is rounded by itself: the
// kernels_*.cpp forbid the compiler to fuse a product with a sum.
#pragma once

#include "common/cpu/storage.h"
#include "kernels.h"

namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET {

namespace simd = ::discloss::cpu::DISCLOSS_CPU_TARGET;

constexpr int kLanes = simd::kLanes<float>;
constexpr int kParts = kBlock / kLanes;
using Vector = simd::Pack<float, kLanes>;

struct Block {
  Vector part[kParts];
};

DISCLOSS_INLINE Block load_block(const float* from) {
  Block block;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    block.part[i] = simd::load<kLanes>(from + i * kLanes);
  }
  return block;
}

DISCLOSS_INLINE void store_block(float* to, const Block& block) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    simd::store<kLanes>(to + i * kLanes, block.part[i]);
  }
}

DISCLOSS_INLINE Block splat(float value) {
  Block block;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    block.part[i] = Vector(value);
  }
  return block;
}

// s + (a - b)^2
DISCLOSS_INLINE Block add_square(Block s, const Block& a, float b) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const Vector t = a.part[i] - Vector(b);
    s.part[i] = s.part[i] + t * t;
  }
  return s;
}

// Bit i: whether lane i of a is less than that of b.
DISCLOSS_INLINE uint32_t less(const Block& a, const Block& b) {
#if DISCLOSS_CPU_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a.part[0].value),
                            reinterpret_cast<__m512>(b.part[0].value), _CMP_LT_OQ);
#else
  uint32_t bits = 0;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const auto mask = (a.part[i] < b.part[i]).value;
#if DISCLOSS_CPU_VECTOR_BYTES == 32
    const auto part = static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
    const auto part = static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
    const auto part = simd::bits_of<Vector>({mask});
#endif
    bits |= part << (i * kLanes);
  }
  return bits;
#endif
}

// Squared distances of the block of points from b on, a whole one, from q [D].
DISCLOSS_INLINE Block squares_from(const Columns& points, int64_t b, const float* q) {
  Block s = splat(0.0f);
  const float* channel = points.values + b * points.channels;
  for (int64_t c = 0; c < points.channels; ++c, channel += kBlock) {
    s = add_square(s, load_block(channel), q[c]);
  }
  return s;
}

// The same where some may be less than limit; else 0, and s is not complete. A sum only grows, so
// that some of the channels often tell.
DISCLOSS_INLINE uint32_t squares_below(const Columns& points, int64_t b, const float* q,
                                       const Block& limit, Block& s) {
  constexpr int64_t kFew = 8;
  const float* channel = points.values + b * points.channels;
  s = splat(0.0f);
  int64_t c = 0;
  if (points.channels > kFew) {
#pragma GCC unroll 8
    for (; c < kFew; ++c, channel += kBlock) {
      s = add_square(s, load_block(channel), q[c]);
    }
    if (less(s, limit) == 0) {
      return 0;
    }
  }
  for (; c < points.channels; ++c, channel += kBlock) {
    s = add_square(s, load_block(channel), q[c]);
  }
  return less(s, limit);
}

// The block that point i is in, and its points from begin on and before end as bits.
DISCLOSS_INLINE int64_t block_of(int64_t i) { return i / kBlock * kBlock; }
DISCLOSS_INLINE uint32_t lanes_of(int64_t b, int64_t begin, int64_t end) {
  uint32_t lanes = 0xffffu;
  lanes &= begin > b ? 0xffffu << (begin - b) : 0xffffu;
  lanes &= end - b < kBlock ? (1u << (end - b)) - 1 : 0xffffu;
  return lanes;
}

}  // namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET
