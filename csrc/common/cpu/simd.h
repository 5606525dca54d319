// A SIMD vector of numbers, so that each loop over pixels is written once and compiled for every
// instruction set.
//
// This header and all that include it are compiled once per instruction set, by kernels_*.cpp, each
// time into a namespace of its own: no function compiled for AVX-512 may be the one that another
// processor calls. For the same reason they instantiate nothing of the standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifndef DISCLOSS_CPU_TARGET
#error "include this header from a kernels_*.cpp, which names the instruction set"
#endif

#define DISCLOSS_INLINE inline __attribute__((always_inline))
// For what is done once a tile, where a call costs nothing: compiled once, not into every caller.
#define DISCLOSS_OUTLINE __attribute__((noinline))

// Vectors are only ever passed to functions that are inlined, so how they are passed is no matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// The numbers in a vector of this instruction set.
template <typename T>
inline constexpr int kLanes = DISCLOSS_CPU_VECTOR_BYTES / sizeof(T);

// W numbers side by side; W is a power of two.
template <typename T, int W>
struct Pack {
  typedef T Vector __attribute__((vector_size(W * sizeof(T))));
  using Lanes = std::make_integer_sequence<int, W>;

  // The result of a comparison, lane by lane.
  struct Mask {
    decltype(Vector{} < Vector{}) value;
    friend DISCLOSS_INLINE Mask operator&(Mask a, Mask b) { return {a.value & b.value}; }
    friend DISCLOSS_INLINE Mask operator~(Mask a) { return {~a.value}; }
  };

  Vector value;

  Pack() = default;
  DISCLOSS_INLINE explicit Pack(T x) : value(x - Vector{}) {}
  static DISCLOSS_INLINE Pack of(Vector vector) {
    Pack pack;
    pack.value = vector;
    return pack;
  }

  friend DISCLOSS_INLINE Pack operator+(Pack a, Pack b) { return of(a.value + b.value); }
  friend DISCLOSS_INLINE Pack operator-(Pack a, Pack b) { return of(a.value - b.value); }
  friend DISCLOSS_INLINE Pack operator*(Pack a, Pack b) { return of(a.value * b.value); }
  friend DISCLOSS_INLINE Pack operator/(Pack a, Pack b) { return of(a.value / b.value); }
  friend DISCLOSS_INLINE Mask operator<(Pack a, Pack b) { return {a.value < b.value}; }
  friend DISCLOSS_INLINE Mask operator>(Pack a, Pack b) { return {a.value > b.value}; }
  friend DISCLOSS_INLINE Mask operator<=(Pack a, Pack b) { return {a.value <= b.value}; }
  friend DISCLOSS_INLINE Mask operator==(Pack a, Pack b) { return {a.value == b.value}; }
  friend DISCLOSS_INLINE Mask operator!=(Pack a, Pack b) { return {a.value != b.value}; }

  friend DISCLOSS_INLINE Pack select(Mask mask, Pack yes, Pack no) {
    return of(mask.value ? yes.value : no.value);
  }
  friend DISCLOSS_INLINE Pack fabs(Pack a) { return select(a < Pack(T(0)), Pack(T(0)) - a, a); }
  friend DISCLOSS_INLINE Pack sqrt(Pack a) {
    Pack root;
    for (int lane = 0; lane < W; ++lane) {
      root.value[lane] = std::sqrt(a.value[lane]);
    }
    return root;
  }
};

namespace detail {

template <typename P, int... I>
DISCLOSS_INLINE typename P::Mask lanes_between(int64_t begin, int64_t end,
                                               std::integer_sequence<int, I...>) {
  using Integers = decltype(P::Mask::value);
  using Integer = std::decay_t<decltype(Integers{}[0])>;
  return {(Integers{I...} >= (static_cast<Integer>(begin) - Integers{})) &
          (Integers{I...} < (static_cast<Integer>(end) - Integers{}))};
}

// A lane of a shuffle's result: the lane of a, or behind those of b, that it takes.
template <int kOffset, typename P, int... I>
DISCLOSS_INLINE P interleave(P a, P b, std::integer_sequence<int, I...>) {
  constexpr int kLanes = sizeof...(I);
#ifdef __clang__
  return P::of(__builtin_shufflevector(a.value, b.value, (kOffset + I / 2 + I % 2 * kLanes)...));
#else
  using Integers = decltype(P::Mask::value);
  return P::of(
      __builtin_shuffle(a.value, b.value, Integers{(kOffset + I / 2 + I % 2 * kLanes)...}));
#endif
}

}  // namespace detail

// True in the lanes begin <= lane < end.
template <typename P>
DISCLOSS_INLINE typename P::Mask lanes_between(int64_t begin, int64_t end) {
  return detail::lanes_between<P>(begin, end, typename P::Lanes{});
}

// True in the first `count` lanes.
template <typename P>
DISCLOSS_INLINE typename P::Mask first_lanes(int64_t count) {
  return lanes_between<P>(0, count);
}

// a0 b0 a1 b1 ... of the lower halves
template <typename T, int W>
DISCLOSS_INLINE Pack<T, W> interleave_low(Pack<T, W> a, Pack<T, W> b) {
  return detail::interleave<0>(a, b, typename Pack<T, W>::Lanes{});
}

// ... and of the upper halves
template <typename T, int W>
DISCLOSS_INLINE Pack<T, W> interleave_high(Pack<T, W> a, Pack<T, W> b) {
  return detail::interleave<W / 2>(a, b, typename Pack<T, W>::Lanes{});
}

// rows[r] lane l <-> rows[l] lane r. One round of interleaving moves the highest bit of the row
// number to the end of the lane number and the highest bit of the lane number to the end of the
// row number; after log2(W) rounds the two have changed places.
template <typename T, int W>
DISCLOSS_INLINE void transpose(Pack<T, W> (&rows)[W]) {
#pragma GCC unroll 16
  for (int round = 1; round < W; round *= 2) {
    Pack<T, W> next[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + W / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      rows[i] = next[i];
    }
  }
}

// The upper half of the lanes added to the lower.
template <typename T, int W>
DISCLOSS_INLINE Pack<T, W / 2> sum_of_halves(Pack<T, W> pack) {
  Pack<T, W / 2> halves[2];
  std::memcpy(halves, &pack, sizeof(pack));
  return halves[0] + halves[1];
}

// The lanes l, l + kRows, ... of the result add up to the sum over the lanes of rows[l]: the rounds
// of transpose, but the two halves of each lane number are added where transpose would make rows of
// them. Rows of more lanes than there are rows are halved first: half as much to shuffle.
template <typename T, int W, int kRows>
DISCLOSS_INLINE auto sum_of_each(Pack<T, W> (&rows)[kRows]) {
  if constexpr (W > kRows) {
    Pack<T, W / 2> halves[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      halves[i] = sum_of_halves(rows[i]);
    }
    return sum_of_each(halves);
  } else {
#pragma GCC unroll 16
    for (int half = kRows / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
      for (int i = 0; i < half; ++i) {
        rows[i] =
            interleave_low(rows[i], rows[i + half]) + interleave_high(rows[i], rows[i + half]);
      }
    }
    return rows[0];
  }
}

template <typename T, int W>
DISCLOSS_INLINE T sum_of_lanes(Pack<T, W> pack) {
  if constexpr (W == 2) {
    return pack.value[0] + pack.value[1];
  } else {
    return sum_of_lanes(sum_of_halves(pack));
  }
}

// A mask as bytes, eight lanes a number: 0 or -1 each.
template <int kLanes>
struct MaskBytes {
  uint64_t eights[(kLanes + 7) / 8] = {};

  template <typename Integers>
  DISCLOSS_INLINE explicit MaskBytes(Integers mask) {
    typedef int8_t Bytes __attribute__((vector_size(kLanes)));
    const Bytes bytes = __builtin_convertvector(mask, Bytes);
    std::memcpy(eights, &bytes, sizeof(bytes));
  }
};

// Bit i is set where lane i of the mask of a P is. Each of eight bytes keeps another bit, and a
// multiplication adds them up.
template <typename P>
DISCLOSS_INLINE uint32_t bits_of(typename P::Mask mask) {
  uint32_t bits = 0;
  int shift = 0;
  for (const uint64_t eight : MaskBytes<P::Lanes::size()>(mask.value).eights) {
    const uint64_t sum = (eight & 0x8040201008040201u) * 0x0101010101010101u;
    bits |= static_cast<uint32_t>(sum >> 56) << shift;
    shift += 8;
  }
  return bits;
}

template <typename P>
DISCLOSS_INLINE bool any(typename P::Mask mask) {
  uint64_t all = 0;
  for (const uint64_t eight : MaskBytes<P::Lanes::size()>(mask.value).eights) {
    all |= eight;
  }
  return all != 0;
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
