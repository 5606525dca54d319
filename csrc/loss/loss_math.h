// The formulas of the loss for one pixel or one pair of means, for host and device alike; each
// derivative directly below its function. Torch-free. T is a number or a SIMD vector of them (which
// brings its own select, sqrt and fabs).
//
// NaN must reach the result: no fmax (fmax(NaN, 0) is 0); comparisons are written so that NaN
// takes the branch that keeps it.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace discloss {

// [t]_+ ; its derivative is (t > 0), so that value and derivative are 0 exactly on the hinge.
template <typename T>
DISCLOSS_HOST_DEVICE T hinge(T t) {
  return select(t <= T(0), T(0), t);
}

// The p-norm |v| in three steps, |v| = finish(sum_d accumulate(v_d)), so that a pass can add up
// channels in any order.
//
// Its derivative times a factor h splits into a part per vector and a part per channel,
//   h d|v|/dv_d = scale(h, |v|) * direction(v_d),
// and is 0 at v = 0.
template <int kNorm>
struct Norm;

template <>
struct Norm<2> {
  template <typename T>
  static DISCLOSS_HOST_DEVICE T accumulate(T sum, T v) {
    return sum + v * v;
  }
  template <typename T>
  static DISCLOSS_HOST_DEVICE T finish(T sum) {
    using std::sqrt;
    return sqrt(sum);
  }
  template <typename T>
  static DISCLOSS_HOST_DEVICE T scale(T h, T norm) {
    return select(norm == T(0), T(0), h / norm);
  }
  template <typename T>
  static DISCLOSS_HOST_DEVICE T direction(T v) {
    return v;
  }
};

template <>
struct Norm<1> {
  template <typename T>
  static DISCLOSS_HOST_DEVICE T accumulate(T sum, T v) {
    using std::fabs;
    return sum + fabs(v);
  }
  template <typename T>
  static DISCLOSS_HOST_DEVICE T finish(T sum) {
    return sum;
  }
  template <typename T>
  static DISCLOSS_HOST_DEVICE T scale(T h, T /*norm*/) {
    return h;
  }
  template <typename T>
  static DISCLOSS_HOST_DEVICE T direction(T v) {
    return select(v > T(0), T(1), select(v < T(0), T(-1), v));  // v itself: 0 or NaN
  }
};

// Normalisers of the terms (eq. 1-3), as factors. K = 0 and K = 1 have no pair and no NaN.

// The pull: v_i = x_i - mu_k, h_i = [|v_i| - delta_var]_+
// L_var = sum_k variance_factor(K, N_k) sum_i h_i^2
DISCLOSS_HOST_DEVICE double variance_factor(int64_t instances, int64_t pixels) {
  return 1.0 / (static_cast<double>(instances) * static_cast<double>(pixels));
}

// g_i = alpha pull_factor(K, N_k) h_i d|v_i|
DISCLOSS_HOST_DEVICE double pull_factor(int64_t instances, int64_t pixels) {
  return 2.0 * variance_factor(instances, pixels);
}

// L_dist = distance_factor(K) sum_{a != b} [2 delta_dist - |mu_a - mu_b|]_+^2
DISCLOSS_HOST_DEVICE double distance_factor(int64_t instances) {
  return instances < 2
             ? 0.0
             : 1.0 / (static_cast<double>(instances) * static_cast<double>(instances - 1));
}

// dL_dist/dmu_a = push_factor(K) sum_{b != a} [2 delta_dist - |mu_a - mu_b|]_+ d|mu_a - mu_b|
// (each unordered pair stands twice in L_dist)
DISCLOSS_HOST_DEVICE double push_factor(int64_t instances) {
  return -4.0 * distance_factor(instances);
}

// The part of dL/dx_i that all pixels of an instance share, one channel of it:
//   (beta P_k + gamma R_k - alpha S_k) / N_k
template <typename T>
DISCLOSS_HOST_DEVICE T shared_gradient(double alpha, double beta, double gamma, T pull, T push,
                                       T mean_derivative, int64_t instances, int64_t pixels) {
  const double through_mean =
      beta * static_cast<double>(push) +
      gamma * static_cast<double>(mean_derivative) / static_cast<double>(instances) -
      alpha * static_cast<double>(pull);
  return static_cast<T>(through_mean / static_cast<double>(pixels));
}

}  // namespace discloss
