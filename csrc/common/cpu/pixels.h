// Pixels as the loops of the CPU backends take them. Plain data only, no code: this header is seen
// by sources of every instruction set (simd.h).
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace discloss::cpu {

// The type that terms and gradients are computed in.
template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <>
struct Accumulate<int32_t> {  // slots
  using type = int32_t;
};
template <typename scalar_t>
using accumulate_t = typename Accumulate<scalar_t>::type;

// The most numbers in a vector of any instruction set.
constexpr int64_t kMostLanes = 16;

constexpr int64_t padded_channels(int64_t channels) {
  return (channels + kMostLanes - 1) / kMostLanes * kMostLanes;
}

// A range of pixels of one image as it lies in memory.
template <typename scalar_t>
struct Pixels {
  const scalar_t* embeddings;  // channel 0 of the first pixel
  const scalar_t* end;         // behind the last element that may be read, of any pixel
  int64_t channel_stride;      // one of the two is 1
  int64_t pixel_stride;
  int64_t channels;      // D
  const int32_t* slots;  // [count]
  int64_t count;
};

}  // namespace discloss::cpu
