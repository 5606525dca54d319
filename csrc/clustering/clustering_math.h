// The numbers that every backend must agree on: radii, size of a sample, least weight of a tree;
// torch-free, for host and device. Definition: docs/clustering.md.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace discloss {

// The options of a call; a new one is a member here and a line where it is used.
struct ClusterOptions {
  double delta_var;      // v
  double delta_dist;     // d >= 2.02 v
  int64_t min_size;      // >= 1
  int64_t sample;        // S, 1 to kMostSampled
  int64_t max_clusters;  // M
  int64_t fragment;      // 0: off
  bool connected;
};

constexpr int64_t kMostSampled = 65536;
constexpr double kNear = 2.02, kFar = 1.98, kDensity = 1.2;

// v and d whose squared radii, and 4096 / h^2, float32 holds with room for every sum's rounding.
constexpr double kLeastMargin = 1e-15, kMostMargin = 1e15;

// Squared radii, in double and rounded once. A distance is compared by `<`.
struct Radii {
  float density;  // h^2, h = 1.2 v
  float slope;    // 4096 / h^2: the density of a point at distance 0
  float near;     // 2.02 v: points of one instance
  float far;      // 1.98 (d - v): points of two instances
  float assign;   // d

  static Radii of(const ClusterOptions& options) {
    const double v = options.delta_var, d = options.delta_dist;
    const double h = kDensity * v, near = kNear * v, far = kFar * (d - v);
    return {static_cast<float>(h * h), static_cast<float>(4096 / (h * h)),
            static_cast<float>(near * near), static_cast<float>(far * far),
            static_cast<float>(d * d)};
  }
};

// A computed squared distance is s (1 + e), |e| <= distance_error(D): D rounded differences,
// squares and sums, twice over.
DISCLOSS_HOST_DEVICE double distance_error(int64_t channels) {
  return static_cast<double>(channels + 4) * 0x1p-23;
}

// Points that a round samples at most of `left` pixels, `first` of them left in round 1.
DISCLOSS_HOST_DEVICE int64_t sample_size(int64_t sample, int64_t left, int64_t first) {
  const int64_t share = 4 * sample * left / first;
  const int64_t wanted = share > 512 ? share : 512;
  return sample < wanted ? sample : wanted;
}

// The fewest points of a tree that is kept.
DISCLOSS_HOST_DEVICE int64_t least_weight(int64_t min_size, int64_t step) {
  const int64_t fewest = step > 1 ? 2 : 1;
  const int64_t half = step > 1 ? min_size / step / 2 : min_size / 2;
  return half > fewest ? half : fewest;
}

}  // namespace discloss
