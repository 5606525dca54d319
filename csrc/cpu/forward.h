// Forward of one image: means, push and pull, each pass over all its parts before the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "batch.h"
#include "kernels.h"
#include "loss_math.h"

namespace discloss::cpu {

struct Hyper {
  double delta_var;
  double delta_dist;
  double alpha;
  double beta;
  double gamma;
  int64_t norm;
};

// Results of one image. Rows k >= K are zero when they come here.
template <typename accscalar_t>
struct ImageResult {
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

  ImageForward(const BatchPixels<scalar_t>& batch, const Hyper& hyper, int64_t image,
               int64_t parts, int64_t instances, const ImageResult<accscalar_t>& result)
      : batch_(batch),
        hyper_(hyper),
        kernels_(best_kernels<scalar_t>(hyper.norm, batch.channels)),
        image_(image),
        parts_(parts),
        instances_(instances),
        channels_(batch.channels),
        padded_(padded_channels(channels_)),
        result_(result) {}

  void run() {
    find_means();
    const double distance = find_push();
    const double variance = find_pull();
    const double regularization = hyper_.norm == 1 ? sum_of_norms<1>() : sum_of_norms<2>();
    *result_.variance = static_cast<accscalar_t>(variance);
    *result_.distance = static_cast<accscalar_t>(distance);
    *result_.regularization = static_cast<accscalar_t>(regularization);
    *result_.loss = static_cast<accscalar_t>(
        hyper_.alpha * variance + hyper_.beta * distance + hyper_.gamma * regularization);
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

  template <typename Body>
  void for_each_part_of_pixels(const Body& body) {
    for_each_part(batch_.images.size(image_), parts_,
                  [&](int64_t part, int64_t begin, int64_t end) {
                    ScratchMemory<accscalar_t> memory(channels_);
                    body(part, batch_.range(image_, begin, end), memory.scratch());
                  });
  }

  // Pass 1: counts and means.
  void find_means() {
    Sums sums(parts_, instances_ * padded_);
    std::vector<int64_t> counts(static_cast<size_t>(parts_ * instances_));
    for_each_part_of_pixels([&](int64_t part, const auto& pixels, const auto& scratch) {
      kernels_.add_sums(pixels, scratch, counts.data() + part * instances_, sums.of(part));
    });
    const double* total = sums.total(parts_);
    means_.resize(static_cast<size_t>(instances_ * padded_));
    for (int64_t k = 0; k < instances_; ++k) {
      for (int64_t part = 0; part < parts_; ++part) {
        result_.counts[k] += counts[static_cast<size_t>(part * instances_ + k)];
      }
      for (int64_t d = 0; d < channels_; ++d) {
        const double mean = total[k * padded_ + d] / static_cast<double>(result_.counts[k]);
        result_.means[k * channels_ + d] = static_cast<accscalar_t>(mean);
        means_[static_cast<size_t>(k * padded_ + d)] = static_cast<accscalar_t>(mean);
      }
    }
  }

  // The pass over pairs of means; returns L_dist.
  double find_push() {
    const int64_t pitch = instances_ + kMostLanes;
    std::vector<accscalar_t> by_channel(static_cast<size_t>(pitch * channels_));
    for (int64_t k = 0; k < instances_; ++k) {
      for (int64_t d = 0; d < channels_; ++d) {
        by_channel[static_cast<size_t>(d * pitch + k)] = result_.means[k * channels_ + d];
      }
    }
    const Means<accscalar_t> means = {means_.data(), by_channel.data(), pitch, instances_,
                                      channels_};
    std::vector<double> squares(static_cast<size_t>(instances_));
    std::vector<double> push(static_cast<size_t>(instances_ * padded_));
    const bool few = instances_ * instances_ * channels_ < 1 << 15;
    at::parallel_for(0, instances_, few || parts_ == 1 ? instances_ : 1,
                     [&](int64_t first, int64_t last) {
                       ScratchMemory<accscalar_t> memory(channels_);
                       kernels_.add_push(means, first, last, memory.scratch(),
                                         static_cast<accscalar_t>(2 * hyper_.delta_dist),
                                         squares.data(), push.data());
                     });
    // The pass has v = mu_b - mu_a, whose derivative by mu_a has the other sign.
    store_rows(push.data(), [&](int64_t) { return -push_factor(instances_); }, result_.push);
    double distance = 0;
    for (const double square : squares) {
      distance += square;
    }
    return distance_factor(instances_) * distance;
  }

  // Pass 2; returns L_var.
  double find_pull() {
    Sums pull(parts_, instances_ * padded_);
    Sums squares(parts_, instances_);
    for_each_part_of_pixels([&](int64_t part, const auto& pixels, const auto& scratch) {
      kernels_.add_pull(pixels, scratch, means_.data(),
                        static_cast<accscalar_t>(hyper_.delta_var), squares.of(part),
                        pull.of(part));
    });
    store_rows(
        pull.total(parts_),
        [&](int64_t k) { return pull_factor(instances_, result_.counts[k]); }, result_.pull);
    double variance = 0;
    const double* total = squares.total(parts_);
    for (int64_t k = 0; k < instances_; ++k) {
      variance += variance_factor(instances_, result_.counts[k]) * total[k];
    }
    return variance;
  }

  // L_reg
  template <int kNorm>
  double sum_of_norms() const {
    double total = 0;
    for (int64_t k = 0; k < instances_; ++k) {
      double sum = 0;
      for (int64_t d = 0; d < channels_; ++d) {
        sum = Norm<kNorm>::accumulate(sum, static_cast<double>(result_.means[k * channels_ + d]));
      }
      total += Norm<kNorm>::finish(sum);
    }
    return total / static_cast<double>(instances_);
  }

  // rows [K, padded] times factor(k) -> results [K, D]
  template <typename Factor>
  void store_rows(const double* rows, const Factor& factor, accscalar_t* results) const {
    for (int64_t k = 0; k < instances_; ++k) {
      for (int64_t d = 0; d < channels_; ++d) {
        results[k * channels_ + d] =
            static_cast<accscalar_t>(factor(k) * rows[k * padded_ + d]);
      }
    }
  }

  const BatchPixels<scalar_t>& batch_;
  const Hyper& hyper_;
  const Kernels<scalar_t>& kernels_;
  int64_t image_;
  int64_t parts_;
  int64_t instances_;  // K
  int64_t channels_;   // D
  int64_t padded_;
  ImageResult<accscalar_t> result_;
  std::vector<accscalar_t> means_;  // [K, padded]
};

}  // namespace discloss::cpu
