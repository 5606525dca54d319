// The pass over pairs of means: each mean against the others, a vector of them at a time. Most are
// too far away to be pushed, which is known before any root is taken.
#pragma once

#include "tile.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

// What one mean, mu_a, feels of a tile of others, mu_b; v = mu_b - mu_a.
template <typename T, int kNorm>
struct Push {
  static constexpr int W = kLanes<T>;
  using P = Pack<T, W>;

  // Vectors of others that are worked on side by side, so that no sum waits for another.
  static constexpr int kVectors = 4;
  // As many numbers are added in a lane before they go to a double.
  static constexpr int kMostTerms = 8;

  T* others;  // [padded x pitch]  means by channel
  T* terms;   // [padded x pitch]  a vector for each channel: sums of h d|v|/dv
  int64_t pitch;
  int64_t count;     // means in the tile
  int64_t channels;  // D
  int64_t padded;    // padded_channels(D)
  T delta;           // 2 delta_dist

  static DISCLOSS_INLINE P zero() { return P(T(0)); }
  DISCLOSS_INLINE P difference(int64_t b, int64_t d, const T* mean) const {
    return load<W>(others + d * pitch + b) - P(mean[d]);
  }

  // by_channel [D, stride]
  DISCLOSS_INLINE void load_others(const T* by_channel, int64_t stride) const {
    for (int64_t d = 0; d < channels; ++d) {
      const T* channel = by_channel + d * stride;
      for (int64_t first = 0; first < count; first += kVectors * W) {
#pragma GCC unroll 4
        for (int64_t b = first; b < first + kVectors * W; b += W) {
          store(others + d * pitch + b, load_before<W>(channel + b, channel + count));
        }
      }
    }
  }

  // norms = |v| of the others from b on. Returns whether any of them may be within the margin; only
  // then are they more than sums.
  DISCLOSS_INLINE bool find_norms(int64_t b, const T* mean, P (&norms)[kVectors]) const {
    // What is compared is the sum whose root is taken, so that only the roundings of this bound and
    // of the root lie between, 4 x 2^-24 of it in all.
    const T bound = kNorm == 2 ? delta * delta * T(1.00001) : delta;
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      norms[j] = zero();
    }
    for (int64_t d = 0; d < channels; ++d) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        norms[j] = Norm<kNorm>::accumulate(norms[j], difference(b + j * W, d, mean));
      }
    }
    auto far = norms[0] > P(bound);  // NaN is near
#pragma GCC unroll 4
    for (int j = 1; j < kVectors; ++j) {
      far = far & (norms[j] > P(bound));
    }
    if (!any<P>(~far)) {
      return false;
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      norms[j] = Norm<kNorm>::finish(norms[j]);
    }
    return true;
  }

  DISCLOSS_INLINE void clear_terms() const {
    for (int64_t d = 0; d < padded; ++d) {
      store(terms + d * pitch, zero());
    }
  }

  // terms += h d|v|/dv, where lanes are set.
  DISCLOSS_INLINE void add_terms(int64_t b, const T* mean, P scale, typename P::Mask lanes) const {
    for (int64_t d = 0; d < channels; ++d) {
      T* to = terms + d * pitch;
      const P term = scale * Norm<kNorm>::direction(difference(b, d, mean));
      store(to, load<W>(to) + select(lanes, term, zero()));
    }
  }

  // push [padded] += the sums of terms over their lanes
  DISCLOSS_INLINE void add_terms_to(double* push) const {
    for (int64_t first = 0; first < padded; first += W) {
      P rows[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) {
        rows[r] = load<W>(terms + (first + r) * pitch);
      }
      add_to<W>(push + first, sum_of_each(rows));
    }
  }

  // square += sum of h^2, push [padded] += sum of h d|v|/dv, over all b but `self`.
  DISCLOSS_INLINE void add(const T* mean, int64_t self, double* square, double* push) const {
    P squares = zero();
    int added = 0;
    const auto flush = [&]() __attribute__((always_inline)) {
      *square += static_cast<double>(sum_of_lanes(squares));
      add_terms_to(push);
      squares = zero();
      added = 0;
    };
    for (int64_t first = 0; first < count; first += kVectors * W) {
      P norms[kVectors];
      if (!find_norms(first, mean, norms)) {
        continue;
      }
      for (int j = 0; j < kVectors; ++j) {
        const int64_t b = first + j * W;
        const P others_h = select(first_lanes<P>(count - b), hinge(P(delta) - norms[j]), zero());
        const P h = select(lanes_between<P>(self - b, self - b + 1), zero(), others_h);
        const auto pushed = h != zero();  // NaN is
        if (!any<P>(pushed)) {
          continue;
        }
        if (added == 0) {
          clear_terms();
        }
        squares = squares + h * h;
        add_terms(b, mean, Norm<kNorm>::scale(h, norms[j]), pushed);
        if (++added == kMostTerms) {
          flush();
        }
      }
    }
    if (added > 0) {
      flush();
    }
  }
};

// Of the means first <= a < last.
template <typename T, int kNorm>
void add_push(const Means<T>& means, int64_t first, int64_t last, const Scratch<T>& scratch,
              T delta, const HingeSums& sums) {
  const int64_t padded = padded_channels(means.channels);
  const int64_t step = tile_pixels(means.channels);
  for (int64_t begin = 0; begin < means.count; begin += step) {
    const int64_t count = means.count - begin < step ? means.count - begin : step;
    // Behind the others there is room for one more vector.
    const Push<T, kNorm> tile = {scratch.values, scratch.values + step, tile_pitch(means.channels),
                                 count,          means.channels,        padded,
                                 delta};
    tile.load_others(means.by_channel + begin, means.count);
    for (int64_t a = first; a < last; ++a) {
      tile.add(means.by_instance + a * padded, a - begin, sums.squares + a,
               sums.directions + a * padded);
    }
  }
}

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
