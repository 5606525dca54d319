// The loops of the CPU backend as it calls them: one table of functions for each instruction set,
// of which the best that this processor has is chosen once. Plain data only, no code: this header
// is seen by every kernels_*.cpp (simd.h).
//
// D channels . K instances . tables of K x D are padded to rows of padded_channels(D)
#pragma once

#include <cstdint>

#include "common/cpu/pixels.h"

namespace discloss::cpu {

// Pixels are worked on a tile at a time, so that what is kept of them stays in the L1 cache.
constexpr int64_t tile_pixels(int64_t channels) {
  const int64_t pixels = 4096 / padded_channels(channels) / 64 * 64;
  return pixels < 64 ? 64 : pixels;
}

// Distance between the channels of a tile: no power of two, which would map them all to the same
// few lines of the cache; and a vector may write past the last pixel.
constexpr int64_t tile_pitch(int64_t channels) { return tile_pixels(channels) + kMostLanes; }

// Neighbouring pixels begin <= i < end of a tile that are in the same slot; -1: ignored.
struct Run {
  int32_t begin;
  int32_t end;
  int32_t slot;
};

// What one thread needs for a tile.
template <typename accscalar_t>
struct Scratch {
  accscalar_t* values;   // [padded x pitch]  embeddings, or their gradient
  accscalar_t* scales;   // [pitch]  Norm::scale(h_i, |v_i|)
  accscalar_t* squares;  // [pitch]  h_i^2
  Run* runs;             // [pitch]
};

// Where the gradient of those pixels goes.
template <typename scalar_t>
struct GradientPixels {
  scalar_t* gradient;  // channel 0 of the first pixel
  int64_t channel_stride;
  int64_t pixel_stride;
};

// The means of an image, twice.
template <typename accscalar_t>
struct Means {
  const accscalar_t* by_instance;  // [K, padded]
  const accscalar_t* by_channel;   // [D, K]
  int64_t count;                   // K
  int64_t channels;                // D
};

// Sums over hinges h of vectors v: of pixels around a mean, or of other means around one.
struct HingeSums {
  double* squares;     // [K]          sum of h^2
  double* directions;  // [K, padded]  sum of h d|v|/dv
};

// What the gradient of a pixel is made of beside its own pull.
template <typename accscalar_t>
struct GradientTables {
  const accscalar_t* means;    // [K, padded]
  const accscalar_t* shared;   // [K, padded]  (beta P_k + gamma R_k - alpha S_k) / N_k
  const accscalar_t* factors;  // [K]          alpha pull_factor(K, N_k)
};

// Every function adds to its results.
template <typename scalar_t>
struct Kernels {
  using accscalar_t = accumulate_t<scalar_t>;

  // counts [K]: N_k . sums [K, padded]: sum of x_i
  void (*add_sums)(const Pixels<scalar_t>&, const Scratch<accscalar_t>&, int64_t* counts,
                   double* sums);

  void (*add_pull)(const Pixels<scalar_t>&, const Scratch<accscalar_t>&, const accscalar_t* means,
                   accscalar_t delta_var, const HingeSums&);

  // For the means first <= a < last, over all b != a, with v = mu_b - mu_a.
  void (*add_push)(const Means<accscalar_t>&, int64_t first, int64_t last,
                   const Scratch<accscalar_t>&, accscalar_t margin, const HingeSums&);

  // Writes dL/dx_i of every pixel.
  void (*write_gradient)(const Pixels<scalar_t>&, const GradientTables<accscalar_t>&,
                         accscalar_t delta_var, const Scratch<accscalar_t>&,
                         const GradientPixels<scalar_t>&);
};

// The table for each norm and instruction set; kernels() of the driver chooses one.
namespace baseline {
template <typename scalar_t>
const Kernels<scalar_t>& kernels(int64_t norm, int64_t channels);
}
namespace avx2 {
template <typename scalar_t>
const Kernels<scalar_t>& kernels(int64_t norm, int64_t channels);
}
namespace avx512 {
template <typename scalar_t>
const Kernels<scalar_t>& kernels(int64_t norm, int64_t channels);
}

}  // namespace discloss::cpu
