// Steps 2 and 3, the loops over the points of a sample.
#pragma once

#include "block.h"

namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET {

inline int64_t first_within(const Columns& points, int64_t begin, int64_t end, const float* q,
                            float limit) {
  const Block bound = splat(limit);
  for (int64_t b = block_of(begin); b < end; b += kBlock) {
    Block s;
    uint32_t lanes = squares_below(points, b, q, bound, s);
    if (lanes != 0 && (lanes &= lanes_of(b, begin, end)) != 0) {
      return b + __builtin_ctz(lanes);
    }
  }
  return -1;
}

inline void distances(const Columns& points, int64_t begin, int64_t end, const float* q,
                      float* squares) {
  for (int64_t b = begin; b < end; b += kBlock) {
    store_block(squares + b - begin, squares_from(points, b, q));
  }
}

inline int64_t within_radii(const Columns& points, const float* radius, int64_t begin, int64_t end,
                            const float* q, float reach, int32_t* found) {
  int64_t count = 0;
  for (int64_t b = block_of(begin); b < end; b += kBlock) {
    Block limit = load_block(radius + b);
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const Vector sum = limit.part[i] + Vector(reach);
      limit.part[i] = sum * sum;
    }
    Block s;
    uint32_t lanes = squares_below(points, b, q, limit, s);
    if (lanes != 0) {
      for (lanes &= lanes_of(b, begin, end); lanes != 0; lanes &= lanes - 1) {
        found[count++] = static_cast<int32_t>(b + __builtin_ctz(lanes));
      }
    }
  }
  return count;
}

inline int64_t density(const Columns& points, int64_t begin, int64_t end, const float* q, float h2,
                       float slope, int32_t* densities) {
  typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
  Integers sums[kParts] = {};
  const Block bound = splat(h2);
  for (int64_t b = block_of(begin); b < end; b += kBlock) {
    Block s;
    uint32_t lanes = squares_below(points, b, q, bound, s);
    if (lanes == 0 || (lanes &= lanes_of(b, begin, end)) == 0) {
      continue;
    }
    const bool partial = b < begin || b + kBlock > end;
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const int64_t first = b + i * kLanes;
      Vector height = (Vector(h2) - s.part[i]) * Vector(slope);
      // of the others the height is not finite, or < 0
      height = select(s.part[i] < Vector(h2), height, Vector(0.0f));
      if (partial) {
        const auto inside = simd::lanes_between<Vector>(begin - first, end - first);
        height = select(inside, height, Vector(0.0f));
      }
      const Integers whole = __builtin_convertvector(height.value, Integers);
      sums[i] += whole;
      if (densities != nullptr) {
        simd::write_vector(densities + first,
                           simd::read_vector<Integers>(densities + first) + whole);
      }
    }
  }
  int64_t sum = 0;
  alignas(64) int32_t lanes[kBlock];
  std::memcpy(lanes, sums, sizeof(lanes));
  for (const int32_t lane : lanes) {
    sum += lane;
  }
  return sum;
}

inline void nearest_denser(const Columns& points, const int32_t* density, const int32_t* index,
                           int64_t begin, int64_t end, const float* q, Denser& point) {
  for (int64_t b = block_of(begin); b < end; b += kBlock) {
    Block s;
    // Equal ones as well, of which the index decides.
    const bool none = point.parent == point.index;
    const Block limit = splat(none ? point.square : std::nextafter(point.square, INFINITY));
    uint32_t lanes = squares_below(points, b, q, limit, s);
    if (lanes == 0) {
      continue;
    }
    alignas(64) float squares[kBlock];
    store_block(squares, s);
    for (lanes &= lanes_of(b, begin, end); lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      const int32_t other = index[b + lane];
      const bool denser = density[b + lane] > point.density ||
                          (density[b + lane] == point.density && other < point.index);
      const bool nearer =
          squares[lane] < point.square ||
          (squares[lane] == point.square && point.parent != point.index && other < point.parent);
      if (denser && nearer) {
        point.square = squares[lane];
        point.parent = other;
      }
    }
  }
}

}  // namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET
