// Backward of one image: pass 3.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "best_kernels.h"
#include "common/cpu/batch.h"
#include "common/cpu/parts.h"
#include "kernels.h"
#include "loss/loss_math.h"
#include "loss/parameters.h"
#include "scratch.h"

namespace discloss::cpu {

// Weights of the terms of one image, upstream gradients included.
struct Weights {
  double alpha;
  double beta;
  double gamma;
};

// What forward saved of one image, and the weights of its terms.
template <typename accscalar_t>
struct SavedImage {
  int64_t instances;         // K
  const int64_t* counts;     // [K]
  const accscalar_t* means;  // [K, D]
  const accscalar_t* pull;   // [K, D]
  const accscalar_t* push;   // [K, D]
  Weights weights;
};

// The tables behind GradientTables.
template <typename accscalar_t>
struct GradientTablesMemory {
  std::vector<accscalar_t> means;
  std::vector<accscalar_t> shared;
  std::vector<accscalar_t> factors;

  GradientTables<accscalar_t> tables() const {
    return {means.data(), shared.data(), factors.data()};
  }
};

template <int kNorm, typename accscalar_t>
GradientTablesMemory<accscalar_t> gradient_tables(const SavedImage<accscalar_t>& saved,
                                                  int64_t channels) {
  const Weights& weights = saved.weights;
  const int64_t padded = padded_channels(channels);
  // One row at least: ignored pixels look there too, to no effect.
  const auto rows = static_cast<size_t>(std::max<int64_t>(saved.instances, 1));
  const size_t size = rows * static_cast<size_t>(padded);
  GradientTablesMemory<accscalar_t> memory = {std::vector<accscalar_t>(size),
                                              std::vector<accscalar_t>(size),
                                              std::vector<accscalar_t>(rows)};
  for (int64_t k = 0; k < saved.instances; ++k) {
    const accscalar_t* mean = saved.means + k * channels;
    accscalar_t sum = 0;
    for (int64_t d = 0; d < channels; ++d) {
      sum = Norm<kNorm>::accumulate(sum, mean[d]);
    }
    const accscalar_t scale = Norm<kNorm>::scale(accscalar_t(1), Norm<kNorm>::finish(sum));
    for (int64_t d = 0; d < channels; ++d) {
      const auto at = static_cast<size_t>(k * padded + d);
      memory.means[at] = mean[d];
      memory.shared[at] =
          shared_gradient(weights.alpha, weights.beta, weights.gamma, saved.pull[k * channels + d],
                          saved.push[k * channels + d], scale * Norm<kNorm>::direction(mean[d]),
                          saved.instances, saved.counts[k]);
    }
    memory.factors[static_cast<size_t>(k)] =
        static_cast<accscalar_t>(weights.alpha * pull_factor(saved.instances, saved.counts[k]));
  }
  return memory;
}

// gradient: where that of image b begins
template <typename scalar_t>
void image_backward(const BatchPixels<scalar_t>& batch, int64_t b, int64_t parts,
                    const SavedImage<accumulate_t<scalar_t>>& saved, const Parameters& parameters,
                    const GradientPixels<scalar_t>& gradient) {
  using accscalar_t = accumulate_t<scalar_t>;
  const auto memory = parameters.norm == 1 ? gradient_tables<1>(saved, batch.channels)
                                           : gradient_tables<2>(saved, batch.channels);
  const auto& kernels = best_kernels<scalar_t>(parameters.norm, batch.channels);
  for_each_part(batch.images.size(b), parts, [&](int64_t, int64_t begin, int64_t end) {
    ScratchMemory<accscalar_t> scratch(batch.channels);
    GradientPixels<scalar_t> out = gradient;
    out.gradient += begin * gradient.pixel_stride;
    kernels.write_gradient(batch.range(b, begin, end), memory.tables(),
                           static_cast<accscalar_t>(parameters.delta_var), scratch.scratch(), out);
  });
}

}  // namespace discloss::cpu
