// A pixel in the registers of one thread, in float. The lanes of a warp take neighbouring pixels:
// of a channels-first tensor they read and write neighbouring elements of each channel, of a
// channels-last one every lane its own row, 16 bytes at a time.
#pragma once

#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"

namespace discloss::cuda {

// kChannels: D, a multiple of 8, so that rows of it are whole vectors in all dtypes.
template <int kChannels>
struct Pixel {
  float values[kChannels];

  template <typename scalar_t>
  __device__ __forceinline__ void load(const Global<const scalar_t*>& from, int64_t offset) {
    const Strides& s = from.strides;
    const scalar_t* x = from.data + offset;
    if (s.channel == 1 && from.vectorized) {
      using V = Vector<scalar_t>;
#pragma unroll
      for (int c = 0; c < kChannels; c += V::kSize) {
        const V vector = load_vector<V>(x + c);
#pragma unroll
        for (int e = 0; e < V::kSize; ++e) {
          values[c + e] = to_accumulate(vector.values[e]);
        }
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        values[c] = to_accumulate(*x);
        x += s.channel;
      }
    }
  }

  template <typename scalar_t>
  __device__ __forceinline__ void store(const Global<scalar_t*>& to, int64_t offset) const {
    const Strides& s = to.strides;
    scalar_t* x = to.data + offset;
    if (s.channel == 1 && to.vectorized) {
      using V = Vector<scalar_t>;
#pragma unroll
      for (int c = 0; c < kChannels; c += V::kSize) {
        V vector;
#pragma unroll
        for (int e = 0; e < V::kSize; ++e) {
          vector.values[e] = round_to<scalar_t>(values[c + e]);
        }
        store_vector(x + c, vector);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        *x = round_to<scalar_t>(values[c]);
        x += s.channel;
      }
    }
  }

  // row [D] of a table of float
  __device__ __forceinline__ void load_row(const float* row) {
#pragma unroll
    for (int c = 0; c < kChannels; c += 4) {
      const auto part = load_vector<Vector<float>>(row + c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values[c + e] = part.values[e];
      }
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      values[c] = 0.0f;
    }
  }

  // v = x - row in place of x; returns |v|^2. row [D] of a table. Or channels [kBegin, kEnd)
  // alone.
  template <int kBegin = 0, int kEnd = kChannels>
  __device__ __forceinline__ float subtract(const float* row) {
    float sum = 0.0f;
#pragma unroll
    for (int c = kBegin; c < kEnd; c += 4) {
      const auto part = load_vector<Vector<float>>(row + c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values[c + e] -= part.values[e];
        sum += values[c + e] * values[c + e];
      }
    }
    return sum;
  }

  // scale v + row in place of v. row [D] of a table.
  __device__ __forceinline__ void scale_and_add(float scale, const float* row) {
#pragma unroll
    for (int c = 0; c < kChannels; c += 4) {
      const auto part = load_vector<Vector<float>>(row + c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values[c + e] = scale * values[c + e] + part.values[e];
      }
    }
  }
};

}  // namespace discloss::cuda
