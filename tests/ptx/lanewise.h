// Instructions from functions of scalars.
#pragma once

#include "instructions.h"

namespace ptx {

// A function of scalars on every lane.
template <auto kFunction>
struct Lanewise;
template <typename Result, typename... Operands, Result (*kFunction)(Operands...)>
struct Lanewise<kFunction> {
  static void execute(Warp& warp, const Instruction& instruction, Mask mask) {
    apply(warp, instruction, mask, std::index_sequence_for<Operands...>());
  }
  template <std::size_t... kIndex>
  static void apply(Warp& warp, const Instruction& instruction, Mask mask,
                    std::index_sequence<kIndex...>) {
    Bits* to = warp[instruction.to[0]];
    const std::array<const Bits*, sizeof...(Operands)> from = {warp[instruction.from[kIndex]]...};
    for_each_lane(mask, [&](unsigned lane) {
      to[lane] = bits_of<Result>(kFunction(value_of<Operands>(from[kIndex][lane])...));
    });
  }
};

// --- types ---------------------------------------------------------------------------------------

using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using f32 = float;
using f64 = double;

template <typename T>
std::string name_of() {
  if constexpr (std::is_same_v<T, bool>) {
    return ".pred";
  }
  const char* kind = std::is_floating_point_v<T> ? ".f" : std::is_signed_v<T> ? ".s" : ".u";
  return kind + std::to_string(8 * sizeof(T));
}

// Adds an instruction for each type.
template <template <typename> typename Operation, typename... Types>
void define(Table& table, const std::string& name) {
  (table.emplace(name + name_of<Types>(), Lanewise<Operation<Types>::call>::execute), ...);
}

}  // namespace ptx
