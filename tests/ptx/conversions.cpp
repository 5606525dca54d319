// cvt: between integers, between floats, and from one to the other; cvta: between address spaces.
#include <cmath>
#include <limits>

#include "lanewise.h"

namespace ptx {
namespace {

// Half precision by its definition, so that no compiler's support is needed or trusted.
struct Half {
  static constexpr int kFraction = 10, kLeastExponent = -14, kBias = 15;
  static constexpr f64 kOverflow = 65520;  // rounds to infinity
  u16 bits;
};

u16 fraction_and_exponent(f64 rounded) {
  int exponent = 0;
  std::frexp(rounded, &exponent);
  --exponent;                             // of 1.f
  if (exponent < Half::kLeastExponent) {  // subnormal, or 0
    return static_cast<u16>(std::ldexp(rounded, Half::kFraction - Half::kLeastExponent));
  }
  const auto fraction = static_cast<u16>(std::ldexp(rounded, Half::kFraction - exponent));
  return static_cast<u16>((exponent + Half::kBias) << Half::kFraction | (fraction & 0x3ff));
}

u16 half_of(f32 value) {
  if (value != value) {
    return 0x7fff;
  }
  const u16 sign = std::signbit(value) ? 0x8000 : 0;
  const f64 magnitude = std::fabs(static_cast<f64>(value));
  if (magnitude >= Half::kOverflow) {
    return sign | 0x7c00;
  }
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int last = std::max(exponent - 1, Half::kLeastExponent) - Half::kFraction;  // place
  const f64 rounded = std::ldexp(std::nearbyint(std::ldexp(magnitude, -last)), last);
  return sign | (rounded == 0 ? 0 : fraction_and_exponent(rounded));
}

f32 of_half(u16 half) {
  const int exponent = half >> Half::kFraction & 0x1f, fraction = half & 0x3ff;
  f64 magnitude = 0;
  if (exponent == 0x1f) {
    magnitude = fraction == 0 ? std::numeric_limits<f64>::infinity()
                              : std::numeric_limits<f64>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(fraction, Half::kLeastExponent - Half::kFraction);
  } else {
    magnitude = std::ldexp(fraction | 0x400, exponent - Half::kBias - Half::kFraction);
  }
  return static_cast<f32>((half & 0x8000) != 0 ? -magnitude : magnitude);
}

u16 bfloat16_of(f32 value) {
  if (value != value) {
    return 0x7fff;
  }
  const auto bits = static_cast<u32>(bits_of(value));
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

f32 of_bfloat16(u16 bits) { return value_of<f32>(u64{bits} << 16); }

template <typename To, typename From>
To convert(From value) {
  return static_cast<To>(value);
}

// Truncates; what is out of range becomes the nearest integer, NaN the least 64-bit or 0.
template <typename To, typename From>
To truncate(From value) {
  if (value != value) {
    return sizeof(To) == 8 ? To{1} << 63 : To{0};
  }
  constexpr f64 kEnd = 2.0 * (std::numeric_limits<To>::max() / 2 + 1);
  if (value >= kEnd) {
    return std::numeric_limits<To>::max();
  }
  return value <= static_cast<f64>(std::numeric_limits<To>::min()) ? std::numeric_limits<To>::min()
                                                                   : static_cast<To>(value);
}

Bits same_address(Bits address) { return address; }
Bits generic_of_shared(Bits address) { return kWindow + address; }
Bits shared_of_generic(Bits address) { return address - kWindow; }

template <typename From, typename... To>
void define_from(Table& table, const std::string& rounding) {
  (table.emplace("cvt" + rounding + name_of<To>() + name_of<From>(),
                 Lanewise<convert<To, From>>::execute),
   ...);
}
template <typename From>
void define_integers_from(Table& table) {
  define_from<From, s8, s16, s32, s64, u8, u16, u32, u64>(table, "");
  define_from<From, f32, f64>(table, ".rn");
}
template <typename From, typename... To>
void define_truncations(Table& table) {
  (table.emplace("cvt.rzi" + name_of<To>() + name_of<From>(),
                 Lanewise<truncate<To, From>>::execute),
   ...);
}

}  // namespace

void add_conversions(Table& table) {
  define_integers_from<s8>(table), define_integers_from<s16>(table);
  define_integers_from<s32>(table), define_integers_from<s64>(table);
  define_integers_from<u8>(table), define_integers_from<u16>(table);
  define_integers_from<u32>(table), define_integers_from<u64>(table);
  define_from<f32, f64>(table, ""), define_from<f64, f32>(table, ".rn");
  define_truncations<f32, s32, s64, u32, u64>(table);
  define_truncations<f64, s32, s64, u32, u64>(table);
  table.emplace("cvta.global.u64", Lanewise<same_address>::execute);
  table.emplace("cvta.to.global.u64", Lanewise<same_address>::execute);
  table.emplace("cvta.shared.u64", Lanewise<generic_of_shared>::execute);
  table.emplace("cvta.to.shared.u64", Lanewise<shared_of_generic>::execute);
  table.emplace("cvt.f32.f16", Lanewise<of_half>::execute);
  table.emplace("cvt.rn.f16.f32", Lanewise<half_of>::execute);
  table.emplace("cvt.f32.bf16", Lanewise<of_bfloat16>::execute);
  table.emplace("cvt.rn.bf16.f32", Lanewise<bfloat16_of>::execute);
}

}  // namespace ptx
