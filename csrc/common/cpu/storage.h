// Reading and writing embeddings of each dtype as vectors of the type that sums are made in.
#pragma once

#include "pixels.h"
#include "simd.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// A vector at any address. Not by memcpy, of which the compiler makes two moves of 16 bytes where
// it has one of 32.
template <typename Vector>
DISCLOSS_INLINE Vector read_vector(const void* from) {
  typedef Vector Unaligned __attribute__((aligned(1), may_alias));
  return *static_cast<const Unaligned*>(from);
}
template <typename Vector>
DISCLOSS_INLINE void write_vector(void* to, Vector vector) {
  typedef Vector Unaligned __attribute__((aligned(1), may_alias));
  *static_cast<Unaligned*>(to) = vector;
}

// float32 <-> 16 bits: the vectors of unsigned integers that the conversions work on.
template <int W>
struct Bits {
  typedef uint16_t Half __attribute__((vector_size(W * 2)));
  typedef uint32_t Word __attribute__((vector_size(W * 4)));
  using Float = Pack<float, W>;

  static DISCLOSS_INLINE Word of(Float pack) { return reinterpret_cast<Word>(pack.value); }
  static DISCLOSS_INLINE Float as_float(Word bits) {
    return Float::of(reinterpret_cast<typename Float::Vector>(bits));
  }
};

// How a dtype is stored. decode() and encode() convert W elements; encode rounds to nearest even.
template <typename scalar_t>
struct Storage {
  template <int W>
  static DISCLOSS_INLINE Pack<scalar_t, W> decode(const scalar_t* from) {
    return Pack<scalar_t, W>::of(read_vector<typename Pack<scalar_t, W>::Vector>(from));
  }
  template <int W>
  static DISCLOSS_INLINE void encode(scalar_t* to, Pack<scalar_t, W> pack) {
    write_vector(to, pack.value);
  }
};

// The upper half of a float32.
template <>
struct Storage<c10::BFloat16> {
  template <int W>
  static DISCLOSS_INLINE Pack<float, W> decode(const c10::BFloat16* from) {
    using B = Bits<W>;
    const auto half = read_vector<typename B::Half>(from);
    return B::as_float(__builtin_convertvector(half, typename B::Word) << 16);
  }
  template <int W>
  static DISCLOSS_INLINE void encode(c10::BFloat16* to, Pack<float, W> pack) {
    using B = Bits<W>;
    const auto bits = B::of(pack);
    const auto rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    const auto is_nan = (pack != pack).value;
    const auto half =
        __builtin_convertvector(is_nan ? (rounded & 0u) + 0x7fc0u : rounded, typename B::Half);
    write_vector(to, half);
  }
};

// IEEE half precision; the exponent is rebased by multiplying with a power of two, and subnormals
// are made by letting an addition shift and round them. The same method as c10/util/Half.h, without
// its branches.
template <>
struct Storage<c10::Half> {
  template <int W>
  static DISCLOSS_INLINE Pack<float, W> decode(const c10::Half* from) {
    using B = Bits<W>;
    const auto half = read_vector<typename B::Half>(from);
    const auto word = __builtin_convertvector(half, typename B::Word) << 16;
    const auto sign = word & 0x80000000u;
    const auto magnitude = word + word;
    const auto normal = B::as_float((magnitude >> 4) + (0xe0u << 23)) * Pack<float, W>(0x1.0p-112f);
    const auto subnormal = B::as_float((magnitude >> 17) | (126u << 23)) - Pack<float, W>(0.5f);
    return B::as_float(sign | (magnitude < (1u << 27) ? B::of(subnormal) : B::of(normal)));
  }
  template <int W>
  static DISCLOSS_INLINE void encode(c10::Half* to, Pack<float, W> pack) {
    using B = Bits<W>;
    const auto word = B::of(pack);
    const auto magnitude = word + word;
    const auto overflowing =
        B::as_float(word & 0x7fffffffu) * Pack<float, W>(0x1.0p+112f) * Pack<float, W>(0x1.0p-110f);
    auto bias = magnitude & 0xff000000u;
    bias = bias < 0x71000000u ? (bias & 0u) + 0x71000000u : bias;
    const auto bits = B::of(B::as_float((bias >> 1) + 0x07800000u) + overflowing);
    const auto finite = ((bits >> 13) & 0x7c00u) + (bits & 0x0fffu);
    const auto is_nan = magnitude > 0xff000000u;
    const auto half = __builtin_convertvector(
        (word & 0x80000000u) >> 16 | (is_nan ? (finite & 0u) + 0x7e00u : finite), typename B::Half);
    write_vector(to, half);
  }
};

template <int W, typename scalar_t>
DISCLOSS_INLINE auto load(const scalar_t* from) {
  return Storage<scalar_t>::template decode<W>(from);
}

template <int W, typename scalar_t>
DISCLOSS_INLINE void store(scalar_t* to, Pack<accumulate_t<scalar_t>, W> pack) {
  Storage<scalar_t>::template encode<W>(to, pack);
}

// W elements of which only those before `end` may be read; the rest is 0.
template <int W, typename scalar_t>
DISCLOSS_INLINE auto load_before(const scalar_t* from, const scalar_t* end) {
  if (end - from >= W) {
    return load<W>(from);
  }
  uint64_t part[W * sizeof(scalar_t) / sizeof(uint64_t)] = {};
  if (end > from) {
    std::memcpy(part, from, static_cast<size_t>(end - from) * sizeof(scalar_t));
  }
  return load<W>(reinterpret_cast<const scalar_t*>(part));
}

// Writes the first `count` lanes.
template <int W, typename scalar_t>
DISCLOSS_INLINE void store_first(scalar_t* to, Pack<accumulate_t<scalar_t>, W> pack,
                                 int64_t count) {
  if (count >= W) {
    store<W>(to, pack);
    return;
  }
  uint64_t part[W * sizeof(scalar_t) / sizeof(uint64_t)];
  const auto* from = reinterpret_cast<scalar_t*>(part);
  store<W>(reinterpret_cast<scalar_t*>(part), pack);
  // In pieces of fixed sizes: `count` is the same for all pixels, and these branches are foreseen.
#pragma GCC unroll 4
  for (int piece = W / 2; piece > 0; piece /= 2) {
    if ((count & piece) != 0) {
      std::memcpy(to, from, piece * sizeof(scalar_t));
      to += piece;
      from += piece;
    }
  }
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
