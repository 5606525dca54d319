// The numbers of the loss, in the order in which the ops and Python (_ops.Parameters) have them.
// Torch-free.
#pragma once

#include <array>
#include <cstdint>

namespace discloss {

struct Parameters {
  double delta_var;
  double delta_dist;
  double alpha;
  double beta;
  double gamma;
  int64_t norm;  // 1 or 2

  static constexpr size_t kCount = 6;

  static Parameters of(const double* numbers) {
    return {numbers[0], numbers[1], numbers[2],
            numbers[3], numbers[4], static_cast<int64_t>(numbers[5])};
  }
  std::array<double, kCount> numbers() const {
    return {delta_var, delta_dist, alpha, beta, gamma, static_cast<double>(norm)};
  }
};

}  // namespace discloss
