// The modes of a round, as pixels are assigned to them.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "clustering/clustering_math.h"
#include "points.h"

namespace discloss::cpu::clustering {

// If s(p, k) < 1/4 s(k, j) safe_share(D), as computed, then s(p, k) < s(p, j), as computed: with
// true distances r = |p - k| and 2 a = |k - j|, |p - j| >= 2 a - r, and with e the error of a
// square it is enough that r < a (1 - e), or s(p, k) (1 + e) < 1/4 s(k, j) (1 - e) (1 - 2 e).
inline double safe_share(int64_t channels) {
  return std::max(0.0, 1 - 8 * distance_error(channels));
}

class ModeTable {
 public:
  ModeTable(const ClusterKernels& kernels, const Points& modes, int64_t classes,
            const ClusterOptions& options, const Radii& radii)
      : channels_(modes.channels), rows_(modes.rows), mode_class_(modes.classes) {
    accept_.assign(modes.classes.size(), radii.assign);
    of_class_.resize(static_cast<size_t>(classes));
    stores_.reserve(static_cast<size_t>(classes));
    std::vector<std::vector<int32_t>> members(static_cast<size_t>(classes));
    for (int64_t k = 0; k < modes.count(); ++k) {
      members[static_cast<size_t>(mode_class_[static_cast<size_t>(k)])].push_back(
          static_cast<int32_t>(k));
    }
    for (int64_t c = 0; c < classes; ++c) {
      stores_.push_back(sorted(modes, std::move(members[static_cast<size_t>(c)])));
      const Sorted& store = stores_.back();
      of_class_[static_cast<size_t>(c)] = {store.columns.view(), store.mode.data(),
                                           store.key.data(), store.key_channel,
                                           store.columns.count()};
      find_accepts(kernels, store, options, radii);
    }
    const double wide = options.delta_dist + options.delta_var;
    modes_ = {rows_.data(),
              accept_.data(),
              mode_class_.data(),
              of_class_.data(),
              radii.near,
              radii.assign,
              static_cast<float>(wide * wide),
              static_cast<float>(wide * kBeyond),
              safe_share(channels_)};
  }

  const Modes& modes() const { return modes_; }

 private:
  // A distance in one channel that is longer than d times this has a square, and so a sum, that is
  // not less than d^2, whatever is rounded.
  static constexpr double kBeyond = 1 + 1e-6;

  struct Sorted {
    ColumnStore columns;
    std::vector<int32_t> mode;  // [padded]
    std::vector<float> key;     // [padded]
    int64_t key_channel;
  };

  static int64_t widest_channel(const Points& modes, const std::vector<int32_t>& members) {
    int64_t widest = 0;
    float width = -1;
    for (int64_t c = 0; c < modes.channels; ++c) {
      float least = INFINITY, most = -INFINITY;
      for (const int32_t k : members) {
        least = std::min(least, modes.row(k)[c]);
        most = std::max(most, modes.row(k)[c]);
      }
      if (most - least > width) {
        width = most - least;
        widest = c;
      }
    }
    return widest;
  }

  static Sorted sorted(const Points& modes, std::vector<int32_t> members) {
    const int64_t key = widest_channel(modes, members);
    std::sort(members.begin(), members.end(), [&](int32_t a, int32_t b) {
      const float x = modes.row(a)[key], y = modes.row(b)[key];
      return x < y || (x == y && a < b);
    });
    const auto count = static_cast<int64_t>(members.size());
    Sorted store = {ColumnStore(modes.channels, count), {}, {}, key};
    for (const int32_t k : members) {
      store.columns.push(modes.row(k));
      store.key.push_back(modes.row(k)[key]);
    }
    members.resize(static_cast<size_t>(whole_blocks(count)));
    store.mode = std::move(members);
    return store;
  }

  // The squared distance below which a pixel is certainly nearest to a mode: within half of the
  // distance to the nearest other.
  void find_accepts(const ClusterKernels& kernels, const Sorted& store,
                    const ClusterOptions& options, const Radii& radii) {
    const int64_t count = store.columns.count();
    const double share = safe_share(channels_);
    const auto reach =  // of those beyond, a half is more than d
        static_cast<float>(2 * options.delta_dist * kBeyond / std::sqrt(share));
    std::vector<float> squares(static_cast<size_t>(whole_blocks(count)));
    int64_t begin = 0, end = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float key = store.key[static_cast<size_t>(i)];
      while (store.key[static_cast<size_t>(begin)] < key - reach) {
        ++begin;
      }
      while (end < count && !(store.key[static_cast<size_t>(end)] > key + reach)) {
        ++end;
      }
      const int64_t first = begin / kBlock * kBlock;
      const int32_t k = store.mode[static_cast<size_t>(i)];
      kernels.distances(store.columns.view(), first, end, rows_.data() + k * channels_,
                        squares.data());
      float nearest = INFINITY;
      for (int64_t j = first; j < end; ++j) {
        nearest = j == i ? nearest : std::min(nearest, squares[static_cast<size_t>(j - first)]);
      }
      constexpr float kTiny = 1e-30f;  // below it squares lose bits
      const double half = nearest < kTiny ? 0.0 : nearest * share / 4;
      accept_[static_cast<size_t>(k)] = std::min(radii.assign, static_cast<float>(half));
    }
  }

  int64_t channels_;
  std::vector<float> rows_;
  std::vector<int32_t> mode_class_;
  std::vector<float> accept_;
  std::vector<Sorted> stores_;
  std::vector<ModeColumns> of_class_;
  Modes modes_;
};

}  // namespace discloss::cpu::clustering
