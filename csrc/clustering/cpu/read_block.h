// Pixels of each dtype and layout as tiles [D, kBlock] of float32.
#pragma once

#include "block.h"

namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET {

template <int W, typename scalar_t>
DISCLOSS_INLINE simd::Pack<float, W> load_float(const scalar_t* from, const scalar_t* end) {
  if constexpr (std::is_same_v<scalar_t, double>) {  // two vectors make one of float32
    typedef float Half __attribute__((vector_size(W * sizeof(float) / 2)));
    const Half halves[2] = {
        __builtin_convertvector(simd::load_before<W / 2>(from, end).value, Half),
        __builtin_convertvector(simd::load_before<W / 2>(from + W / 2, end).value, Half)};
    simd::Pack<float, W> pack;
    std::memcpy(&pack, halves, sizeof(pack));
    return pack;
  } else {
    return simd::load_before<W>(from, end);
  }
}

template <typename scalar_t>
void read_channels(const scalar_t* from, const scalar_t* end, int64_t channel_stride,
                   int64_t channels, float* tile) {
  constexpr int64_t kAhead = 96;  // the memory has to know of so many streams early
  for (int64_t c = 0; c < channels; ++c) {
    const scalar_t* pixels = from + c * channel_stride;
    __builtin_prefetch(pixels + kAhead);
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      simd::store<kLanes>(tile + c * kBlock + i * kLanes,
                          load_float<kLanes>(pixels + i * kLanes, end));
    }
  }
}

// Pixels whose channels lie side by side, W of each at a time.
template <typename scalar_t>
void read_pixels(const scalar_t* from, const scalar_t* end, int64_t pixel_stride, int64_t channels,
                 float* tile) {
  constexpr int W = kLanes < 8 ? kLanes : 8;
  for (int64_t first = 0; first < kBlock; first += W) {
    for (int64_t c = 0; c < channels; c += W) {
      simd::Pack<float, W> rows[W];
#pragma GCC unroll 8
      for (int i = 0; i < W; ++i) {
        rows[i] = load_float<W>(from + (first + i) * pixel_stride + c, end);
      }
      simd::transpose(rows);
      const int64_t count = channels - c < W ? channels - c : W;
#pragma GCC unroll 8
      for (int i = 0; i < W; ++i) {
        if (i < count) {
          simd::store<W>(tile + (c + i) * kBlock + first, rows[i]);
        }
      }
    }
  }
}

template <typename scalar_t>
void read_block(const void* from, const void* end, int64_t channel_stride, int64_t pixel_stride,
                int64_t channels, float* tile) {
  const auto* pixels = static_cast<const scalar_t*>(from);
  const auto* last = static_cast<const scalar_t*>(end);
  if (pixel_stride == 1) {
    read_channels(pixels, last, channel_stride, channels, tile);
  } else {
    read_pixels(pixels, last, pixel_stride, channels, tile);
  }
}

}  // namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET
