// Forward of one image: means, push and pull, each pass over all its parts before the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "best_kernels.h"
#include "common/cpu/batch.h"
#include "common/cpu/parts.h"
#include "ids.h"
#include "kernels.h"
#include "loss/loss_math.h"
#include "loss/parameters.h"
#include "scratch.h"

namespace discloss::cpu {

// Results of one image. Rows k >= K are zero when they come here.
template <typename accscalar_t>
struct ImageResult {
  int32_t* slots;     // [N], numbers that ids.rank() makes slots of
  accscalar_t* loss;  // and the terms, one number each
  accscalar_t* variance;
  accscalar_t* distance;
  accscalar_t* regularization;
  int64_t* counts;     // [M]
  accscalar_t* means;  // [M, D]
  accscalar_t* pull;   // [M, D]
  accscalar_t* push;   // [M, D]
};

template <typename scalar_t>
class ImageForward {
 public:
  using accscalar_t = accumulate_t<scalar_t>;

  ImageForward(const BatchPixels<scalar_t>& batch, const Parameters& parameters, int64_t image,
               int64_t parts, const ImageIds& ids, const ImageResult<accscalar_t>& result)
      : batch_(batch),
        parameters_(parameters),
        kernels_(best_kernels<scalar_t>(parameters.norm, batch.channels)),
        image_(image),
        parts_(parts),
        ids_(ids),
        instances_(ids.instances),
        channels_(batch.channels),
        padded_(padded_channels(channels_)),
        result_(result),
        push_(1, instances_ * padded_),
        push_squares_(1, instances_),
        pull_(parts, instances_ * padded_),
        pull_squares_(parts, instances_) {}

  // Loss and terms are 0 when this comes; of an image without instances they stay so.
  void run() {
    if (instances_ == 0) {
      for_each_part(batch_.images.size(image_), parts_,
                    [&](int64_t part, int64_t begin, int64_t end) {
                      ids_.rank(part, result_.slots, begin, end);
                    });
      return;
    }
    find_means();
    find_push_and_pull();
    const double variance = store_pull();
    const double distance = store_push();
    const double regularization = parameters_.norm == 1 ? sum_of_norms<1>() : sum_of_norms<2>();
    *result_.variance = static_cast<accscalar_t>(variance);
    *result_.distance = static_cast<accscalar_t>(distance);
    *result_.regularization = static_cast<accscalar_t>(regularization);
    *result_.loss =
        static_cast<accscalar_t>(parameters_.alpha * variance + parameters_.beta * distance +
                                 parameters_.gamma * regularization);
  }

 private:
  // Tables of doubles, one a part.
  struct Sums {
    Sums(int64_t parts, int64_t size) : size(size), table(static_cast<size_t>(parts * size)) {}
    double* of(int64_t part) { return table.data() + part * size; }

    // Adds the other parts to the first.
    double* total(int64_t parts) {
      for (int64_t part = 1; part < parts; ++part) {
        for (int64_t i = 0; i < size; ++i) {
          table[static_cast<size_t>(i)] += of(part)[i];
        }
      }
      return table.data();
    }

    int64_t size;
    std::vector<double> table;
  };

  // Calls body(part, pixels of the part, scratch) for each part, in parallel.
  template <typename Body>
  void for_each_part_of_pixels(const Body& body) {
    for_each_part(batch_.images.size(image_), parts_,
                  [&](int64_t part, int64_t begin, int64_t end) {
                    ScratchMemory<accscalar_t> memory(channels_);
                    body(part, batch_.range(image_, begin, end), memory.scratch());
                  });
  }

  // Slots, counts and means: pass 1.
  void find_means() {
    Sums sums(parts_, instances_ * padded_);
    std::vector<int64_t> counts(static_cast<size_t>(parts_ * instances_));
    for_each_part_of_pixels([&](int64_t part, const auto& pixels, const auto& scratch) {
      const int64_t begin = part_boundary(batch_.images.size(image_), parts_, part);
      ids_.rank(part, result_.slots, begin, begin + pixels.count);
      kernels_.add_sums(pixels, scratch, counts.data() + part * instances_, sums.of(part));
    });
    const double* total = sums.total(parts_);
    means_.resize(static_cast<size_t>(instances_ * padded_));
    for (int64_t k = 0; k < instances_; ++k) {
      for (int64_t part = 0; part < parts_; ++part) {
        result_.counts[k] += counts[static_cast<size_t>(part * instances_ + k)];
      }
      for (int64_t d = 0; d < channels_; ++d) {
        const auto mean = static_cast<accscalar_t>(total[k * padded_ + d] /
                                                   static_cast<double>(result_.counts[k]));
        result_.means[k * channels_ + d] = mean;
        means_[static_cast<size_t>(k * padded_ + d)] = mean;
      }
    }
  }

  // The pass over pairs of means, each part for some of them, and pass 2.
  void find_push_and_pull() {
    const auto by_channel = means_by_channel();
    const Means<accscalar_t> means = {means_.data(), by_channel.data(), instances_, channels_};
    for_each_part_of_pixels([&](int64_t part, const auto& pixels, const auto& scratch) {
      kernels_.add_push(means, instances_ * part / parts_, instances_ * (part + 1) / parts_,
                        scratch, static_cast<accscalar_t>(2 * parameters_.delta_dist),
                        HingeSums{push_squares_.of(0), push_.of(0)});
      kernels_.add_pull(pixels, scratch, means_.data(),
                        static_cast<accscalar_t>(parameters_.delta_var),
                        HingeSums{pull_squares_.of(part), pull_.of(part)});
    });
  }

  std::vector<accscalar_t> means_by_channel() const {
    std::vector<accscalar_t> by_channel(static_cast<size_t>(instances_ * channels_));
    for (int64_t k = 0; k < instances_; ++k) {
      for (int64_t d = 0; d < channels_; ++d) {
        by_channel[static_cast<size_t>(d * instances_ + k)] = result_.means[k * channels_ + d];
      }
    }
    return by_channel;
  }

  // Returns L_dist.
  double store_push() {
    // The pass has v = mu_b - mu_a, whose derivative by mu_a has the other sign.
    store_rows(push_.of(0), [&](int64_t) { return -push_factor(instances_); }, result_.push);
    double distance = 0;
    for (int64_t k = 0; k < instances_; ++k) {
      distance += push_squares_.of(0)[k];
    }
    return distance_factor(instances_) * distance;
  }

  // Returns L_var.
  double store_pull() {
    store_rows(
        pull_.total(parts_), [&](int64_t k) { return pull_factor(instances_, result_.counts[k]); },
        result_.pull);
    double variance = 0;
    const double* squares = pull_squares_.total(parts_);
    for (int64_t k = 0; k < instances_; ++k) {
      variance += variance_factor(instances_, result_.counts[k]) * squares[k];
    }
    return variance;
  }

  // L_reg. A norm whose square is 0 in accscalar_t counts as 0, as it does in its derivative.
  template <int kNorm>
  double sum_of_norms() const {
    double total = 0;
    for (int64_t k = 0; k < instances_; ++k) {
      double sum = 0;
      for (int64_t d = 0; d < channels_; ++d) {
        sum = Norm<kNorm>::accumulate(sum, static_cast<double>(result_.means[k * channels_ + d]));
      }
      total += static_cast<accscalar_t>(sum) == 0 ? 0.0 : Norm<kNorm>::finish(sum);
    }
    return total / static_cast<double>(instances_);
  }

  // rows [K, padded] times factor(k) -> results [K, D]
  template <typename Factor>
  void store_rows(const double* rows, const Factor& factor, accscalar_t* results) const {
    for (int64_t k = 0; k < instances_; ++k) {
      for (int64_t d = 0; d < channels_; ++d) {
        results[k * channels_ + d] = static_cast<accscalar_t>(factor(k) * rows[k * padded_ + d]);
      }
    }
  }

  const BatchPixels<scalar_t>& batch_;
  const Parameters& parameters_;
  const Kernels<scalar_t>& kernels_;
  int64_t image_;
  int64_t parts_;
  const ImageIds& ids_;
  int64_t instances_;  // K
  int64_t channels_;   // D
  int64_t padded_;
  ImageResult<accscalar_t> result_;
  std::vector<accscalar_t> means_;  // [K, padded]
  Sums push_;
  Sums push_squares_;
  Sums pull_;
  Sums pull_squares_;
};

}  // namespace discloss::cpu
