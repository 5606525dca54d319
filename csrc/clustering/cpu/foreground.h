// Which pixels are foreground, a bit each, and of which class.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "common/cpu/parts.h"

namespace discloss::cpu::clustering {

struct Foreground {
  std::vector<uint64_t> bits;     // [N / 64]
  std::vector<int32_t> classes;   // [N] numbers of classes; empty: all are of class 0
  std::vector<int64_t> values{};  // of each class
};

// Bit i is set where byte i is not 0: each byte has its highest bit set if it has any, and a
// multiplication brings these together.
inline uint64_t bits_of_bytes(const uint8_t* bytes) {
  uint64_t bits = 0;
  for (int eighth = 0; eighth < 8; ++eighth) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * eighth, 8);
    const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
    const uint64_t ones = ((((eight & low) + low) | eight) & ~low) >> 7;
    bits |= ((ones * 0x0102040810204080u) >> 56) << (8 * eighth);
  }
  return bits;
}

// The bits of up to 64 pixels.
template <typename T>
uint64_t foreground_word(const T* mask, int64_t count) {
  uint8_t bytes[64] = {};
  if (count == 64) {
    for (int i = 0; i < 64; ++i) {
      bytes[i] = mask[i] != T(0);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      bytes[i] = mask[i] != T(0);
    }
  }
  return bits_of_bytes(bytes);
}

// Numbers of the classes of pixels that are not 0.
template <typename T>
void number_classes(const T* mask, int64_t pixels, Foreground& foreground) {
  foreground.classes.resize(static_cast<size_t>(pixels));
  std::unordered_map<int64_t, int32_t> numbers;
  for (size_t k = 0; k < foreground.values.size(); ++k) {
    numbers.emplace(foreground.values[k], static_cast<int32_t>(k));
  }
  T last = 0;
  int32_t number = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    if (mask[i] != last) {
      last = mask[i];
      if (last != 0) {
        const auto next = static_cast<int32_t>(numbers.size());
        const auto [entry, fresh] = numbers.emplace(static_cast<int64_t>(last), next);
        number = entry->second;
        if (fresh) {
          foreground.values.push_back(static_cast<int64_t>(last));
        }
      }
    }
    foreground.classes[static_cast<size_t>(i)] = last != 0 ? number : 0;
  }
}

template <typename T>
Foreground read_foreground(const T* mask, int64_t pixels, int64_t parts) {
  Foreground foreground;
  foreground.bits.resize(static_cast<size_t>((pixels + 63) / 64));
  std::vector<T> first(static_cast<size_t>(parts));          // the first value of a part
  std::vector<uint8_t> several(static_cast<size_t>(parts));  // whether it has others
  for_each_part(pixels, parts, [&](int64_t part, int64_t begin, int64_t end) {
    T value = 0;
    bool others = false;
    for (int64_t i = begin; i < end; i += 64) {
      const int64_t count = std::min<int64_t>(64, end - i);
      const uint64_t word = foreground_word(mask + i, count);
      foreground.bits[static_cast<size_t>(i / 64)] = word;
      if constexpr (!std::is_same_v<T, bool>) {
        if (value == 0 && word != 0) {
          value = mask[i + __builtin_ctzll(word)];
        }
        bool differs = false;
        for (int64_t j = i; j < i + count; ++j) {
          differs |= (mask[j] != T(0)) & (mask[j] != value);
        }
        others |= differs;
      }
    }
    first[static_cast<size_t>(part)] = value;
    several[static_cast<size_t>(part)] = others;
  });
  foreground.values.push_back(1);
  if constexpr (!std::is_same_v<T, bool>) {
    T value = 0;
    bool one = true;
    for (size_t part = 0; part < first.size(); ++part) {
      one &= several[part] == 0 && (first[part] == 0 || value == 0 || first[part] == value);
      value = value == 0 ? first[part] : value;
    }
    foreground.values[0] = value == 0 ? 1 : static_cast<int64_t>(value);
    if (!one) {
      number_classes(mask, pixels, foreground);
    }
  }
  return foreground;
}

// The first `count` bits.
inline std::vector<uint64_t> all_bits(int64_t count) {
  std::vector<uint64_t> bits(static_cast<size_t>((count + 63) / 64), ~uint64_t{0});
  if (count % 64 != 0) {
    bits.back() = (uint64_t{1} << (count % 64)) - 1;
  }
  return bits;
}

// Of `pixels` pixels from `first` on of a contiguous mask; not defined: all of them.
inline Foreground image_foreground(const at::Tensor& mask, int64_t first, int64_t pixels,
                                   int64_t parts) {
  if (!mask.defined()) {
    return {all_bits(pixels), {}, {1}};
  }
  const auto read = [&](auto zero) {
    return read_foreground(mask.const_data_ptr<decltype(zero)>() + first, pixels, parts);
  };
  switch (mask.scalar_type()) {
    case at::kBool:
      return read(bool{});
    case at::kChar:
      return read(int8_t{});
    case at::kByte:
      return read(uint8_t{});
    case at::kShort:
      return read(int16_t{});
    case at::kUInt16:
      return read(uint16_t{});
    case at::kInt:
      return read(int32_t{});
    default:
      return read(int64_t{});
  }
}

}  // namespace discloss::cpu::clustering
