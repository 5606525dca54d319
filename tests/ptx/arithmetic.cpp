// Arithmetic as PTX defines it: integers wrap around, floats round once to nearest, nothing is
// flushed to zero. What is approximate on a device is exact here, but for rsqrt, which is wrong in
// its last bit.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "lanewise.h"

namespace ptx {
namespace {

template <typename T>
struct TwiceT;
template <>
struct TwiceT<s16> {
  using type = s32;
};
template <>
struct TwiceT<u16> {
  using type = u32;
};
template <>
struct TwiceT<s32> {
  using type = s64;
};
template <>
struct TwiceT<u32> {
  using type = u64;
};
template <>
struct TwiceT<s64> {
  using type = __int128;
};
template <>
struct TwiceT<u64> {
  using type = unsigned __int128;
};
template <typename T>
using Twice = typename TwiceT<T>::type;

// In which sums and products of T wrap around without overflow.
template <typename T>
using Wrapping = std::conditional_t<std::is_integral_v<T>, u64, T>;
template <typename T>
Wrapping<T> wrapping(T value) {
  return static_cast<Wrapping<T>>(value);
}

// --- operations ----------------------------------------------------------------------------------

#define PTX_OPERATION(Name, operands, expression)                 \
  template <typename T>                                           \
  struct Name {                                                   \
    static T call operands { return static_cast<T>(expression); } \
  };
#define PTX_COMPARISON(Name, expression)              \
  template <typename T>                               \
  struct Name {                                       \
    static bool call(T a, T b) { return expression; } \
  };

PTX_OPERATION(Add, (T a, T b), wrapping(a) + wrapping(b))
PTX_OPERATION(Sub, (T a, T b), wrapping(a) - wrapping(b))
PTX_OPERATION(Mul, (T a, T b), wrapping(a) * wrapping(b))
PTX_OPERATION(Mad, (T a, T b, T c), wrapping(a) * wrapping(b) + wrapping(c))
PTX_OPERATION(MulHigh, (T a, T b), static_cast<Twice<T>>(a) * b >> 8 * sizeof(T))
PTX_OPERATION(Fma, (T a, T b, T c), std::fma(a, b, c))
PTX_OPERATION(Sqrt, (T a), std::sqrt(a))
PTX_OPERATION(Reciprocal, (T a), 1 / a)
PTX_OPERATION(Absolute, (T a), a < 0 ? 0 - wrapping(a) : wrapping(a))
PTX_OPERATION(FloatAbsolute, (T a), std::fabs(a))
PTX_OPERATION(Negative, (T a), 0 - wrapping(a))
PTX_OPERATION(FloatNegative, (T a), -a)
PTX_OPERATION(Min, (T a, T b), b < a ? b : a)
PTX_OPERATION(Max, (T a, T b), a < b ? b : a)
PTX_OPERATION(FloatMin, (T a, T b), std::fmin(a, b))
PTX_OPERATION(FloatMax, (T a, T b), std::fmax(a, b))
PTX_OPERATION(And, (T a, T b), a& b)
PTX_OPERATION(Or, (T a, T b), a | b)
PTX_OPERATION(Xor, (T a, T b), a ^ b)
PTX_OPERATION(Select, (T a, T b, bool first), first ? a : b)
PTX_OPERATION(ShiftLeft, (T a, u32 n), n < 8 * sizeof(T) ? wrapping(a) << n : 0)
PTX_OPERATION(ShiftRight, (T a, u32 n), n < 8 * sizeof(T) ? a >> n : a < 0 ? -1 : 0)
PTX_OPERATION(FloatDivide, (T a, T b), a / b)

PTX_COMPARISON(Equal, a == b)
PTX_COMPARISON(NotEqual, a<b || a> b)
PTX_COMPARISON(Less, a < b)
PTX_COMPARISON(LessEqual, a <= b)
PTX_COMPARISON(Greater, a > b)
PTX_COMPARISON(GreaterEqual, a >= b)
// Or unordered: one of them is NaN.
PTX_COMPARISON(EqualOr, !(a < b || a > b))
PTX_COMPARISON(NotEqualOr, !(a == b))
PTX_COMPARISON(LessOr, !(a >= b))
PTX_COMPARISON(LessEqualOr, !(a > b))
PTX_COMPARISON(GreaterOr, !(a <= b))
PTX_COMPARISON(GreaterEqualOr, !(a < b))
PTX_COMPARISON(Ordered, a == a && b == b)
PTX_COMPARISON(Unordered, a != a || b != b)

#undef PTX_OPERATION
#undef PTX_COMPARISON

template <typename T>
struct Not {
  static T call(T a) { return static_cast<T>(Xor<T>::call(a, static_cast<T>(~u64{0}))); }
};
template <typename T>
struct Divide {
  static T call(T a, T b) {
    if (b == 0) {
      throw Fault("division of an integer by 0");
    }
    return std::is_signed_v<T> && b == static_cast<T>(-1) ? Negative<T>::call(a)
                                                          : static_cast<T>(a / b);
  }
};
template <typename T>
struct Remainder {
  static T call(T a, T b) { return Sub<T>::call(a, Mul<T>::call(Divide<T>::call(a, b), b)); }
};
template <typename T>
struct MulWide {
  static Twice<T> call(T a, T b) { return static_cast<Twice<T>>(a) * b; }
};
template <typename T>
struct MadWide {
  static Twice<T> call(T a, T b, Twice<T> c) {
    return Add<Twice<T>>::call(MulWide<T>::call(a, b), c);
  }
};
template <typename T>
struct CountOnesOf {  // into 32 bits
  static u32 call(T a) { return static_cast<u32>(std::popcount(a)); }
};
template <typename T>
struct LeadingZerosOf {
  static u32 call(T a) { return static_cast<u32>(std::countl_zero(a)); }
};
template <typename T>
struct HighestBit {
  static u32 call(T a) {
    return a == 0 ? ~0u : static_cast<u32>(8 * sizeof(T) - 1 - std::countl_zero(a));
  }
};
template <typename T>
struct HighestBitShift {  // to the top
  static u32 call(T a) { return a == 0 ? ~0u : static_cast<u32>(std::countl_zero(a)); }
};

u32 reverse_bits(u32 value) {
  u32 result = 0;
  for (int i = 0; i < 32; ++i) {
    result |= (value >> i & 1u) << (31 - i);
  }
  return result;
}

// The low `length` bits of a, at `position` of b.
u32 insert_bits(u32 a, u32 b, u32 position, u32 length) {
  position &= 0xff;
  length &= 0xff;
  const u64 ones = length >= 32 ? 0xffffffffu : (u64{1} << length) - 1;
  const u64 field = position >= 32 ? 0 : ones << position;
  return static_cast<u32>((b & ~field) | (position >= 32 ? 0 : u64{a} << position & field));
}

u32 extract_bits(u32 a, u32 position, u32 length) {
  position &= 0xff;
  length &= 0xff;
  const u64 ones = length >= 32 ? 0xffffffffu : (u64{1} << length) - 1;
  return static_cast<u32>(position >= 32 ? 0 : a >> position & ones);
}

// Each byte one of the eight of b and a, or its sign.
u32 permute_bytes(u32 a, u32 b, u32 selectors) {
  const u64 bytes = u64{b} << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 selector = selectors >> 4 * i & 0xf;
    u32 byte = bytes >> 8 * (selector & 7) & 0xff;
    if ((selector & 8) != 0) {
      byte = (byte & 0x80) != 0 ? 0xff : 0;
    }
    result |= byte << 8 * i;
  }
  return result;
}

u32 funnel_left(u32 low, u32 high, u32 n) {
  return static_cast<u32>((u64{high} << 32 | low) << (n & 31) >> 32);
}
u32 funnel_right(u32 low, u32 high, u32 n) {
  return static_cast<u32>((u64{high} << 32 | low) >> (n & 31));
}

// Two units in the last place off at most, says the manual.
f32 approximate_rsqrt(f32 a) {
  return static_cast<f32>((1 + 0x1p-24) / std::sqrt(static_cast<f64>(a)));
}

// --- the table -----------------------------------------------------------------------------------

template <template <typename> typename Operation>
void define_integers(Table& table, const std::string& name) {
  define<Operation, s16, s32, s64, u16, u32, u64>(table, name);
}
template <template <typename> typename Operation>
void define_bits(Table& table, const std::string& name) {
  define<Operation, bool, u16, u32, u64>(table, name);
}
template <template <typename> typename Operation>
void define_floats(Table& table, const std::string& name) {
  define<Operation, f32, f64>(table, name);
}

void define_comparisons(Table& table) {
  define_integers<Equal>(table, "setp.eq"), define_floats<Equal>(table, "setp.eq");
  define_integers<NotEqual>(table, "setp.ne"), define_floats<NotEqual>(table, "setp.ne");
  define_integers<Less>(table, "setp.lt"), define_floats<Less>(table, "setp.lt");
  define_integers<LessEqual>(table, "setp.le"), define_floats<LessEqual>(table, "setp.le");
  define_integers<Greater>(table, "setp.gt"), define_floats<Greater>(table, "setp.gt");
  define_integers<GreaterEqual>(table, "setp.ge"), define_floats<GreaterEqual>(table, "setp.ge");
  define<Less, u16, u32, u64>(table, "setp.lo");
  define<LessEqual, u16, u32, u64>(table, "setp.ls");
  define<Greater, u16, u32, u64>(table, "setp.hi");
  define<GreaterEqual, u16, u32, u64>(table, "setp.hs");
  define_floats<EqualOr>(table, "setp.equ"), define_floats<NotEqualOr>(table, "setp.neu");
  define_floats<LessOr>(table, "setp.ltu"), define_floats<LessEqualOr>(table, "setp.leu");
  define_floats<GreaterOr>(table, "setp.gtu"), define_floats<GreaterEqualOr>(table, "setp.geu");
  define_floats<Ordered>(table, "setp.num"), define_floats<Unordered>(table, "setp.nan");
}

void define_integer_arithmetic(Table& table) {
  define_integers<Add>(table, "add"), define_integers<Sub>(table, "sub");
  define_integers<Mul>(table, "mul.lo"), define_integers<Mad>(table, "mad.lo");
  define_integers<MulHigh>(table, "mul.hi");
  define<MulWide, s16, u16, s32, u32>(table, "mul.wide");
  define<MadWide, s16, u16, s32, u32>(table, "mad.wide");
  define_integers<Divide>(table, "div"), define_integers<Remainder>(table, "rem");
  define_integers<Min>(table, "min"), define_integers<Max>(table, "max");
  define<Absolute, s16, s32, s64>(table, "abs");
  define<Negative, s16, s32, s64>(table, "neg");
  define_bits<And>(table, "and"), define_bits<Or>(table, "or");
  define_bits<Xor>(table, "xor"), define_bits<Not>(table, "not");
  define<ShiftLeft, u16, u32, u64>(table, "shl");
  define_integers<ShiftRight>(table, "shr");
  define<CountOnesOf, u32, u64>(table, "popc");
  define<LeadingZerosOf, u32, u64>(table, "clz");
  define<HighestBit, u32, u64>(table, "bfind");
  define<HighestBitShift, u32, u64>(table, "bfind.shiftamt");
  table.emplace("brev.u32", Lanewise<reverse_bits>::execute);
  table.emplace("bfi.u32", Lanewise<insert_bits>::execute);
  table.emplace("bfe.u32", Lanewise<extract_bits>::execute);
  table.emplace("prmt.u32", Lanewise<permute_bytes>::execute);
  table.emplace("shf.l.wrap.u32", Lanewise<funnel_left>::execute);
  table.emplace("shf.r.wrap.u32", Lanewise<funnel_right>::execute);
}

void define_float_arithmetic(Table& table) {
  for (const char* rounding : {"", ".rn"}) {
    const std::string rounded = rounding;
    define_floats<Add>(table, "add" + rounded), define_floats<Sub>(table, "sub" + rounded);
    define_floats<Mul>(table, "mul" + rounded);
  }
  define_floats<Fma>(table, "fma.rn"), define_floats<FloatDivide>(table, "div.rn");
  define_floats<Sqrt>(table, "sqrt.rn"), define_floats<Reciprocal>(table, "rcp.rn");
  define_floats<FloatAbsolute>(table, "abs"), define_floats<FloatNegative>(table, "neg");
  define_floats<FloatMin>(table, "min"), define_floats<FloatMax>(table, "max");
  table.emplace("rsqrt.approx.f32", Lanewise<approximate_rsqrt>::execute);
}

}  // namespace

const Table& arithmetic() {
  static const Table table = [] {
    Table made;
    define_comparisons(made);
    define_integer_arithmetic(made);
    define_float_arithmetic(made);
    define_integers<Select>(made, "selp"), define_floats<Select>(made, "selp");
    add_conversions(made);
    return made;
  }();
  return table;
}

}  // namespace ptx
