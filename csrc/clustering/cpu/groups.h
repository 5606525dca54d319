// The points of a sample in groups that lie near each other, so that whole groups can be skipped.
// Groups only save time: no result depends on them.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "mode_table.h"
#include "points.h"

namespace discloss::cpu::clustering {

// A group is a ball around its middle; those of one point come last. Points of two groups may be
// near each other only where one of the two has several: each point lies near the first, its
// pivot, and no two pivots are near each other.
class Groups {
 public:
  // members: the points that are grouped, ascending.
  Groups(const ClusterKernels& kernels, const Points& points, const std::vector<int32_t>& members,
         const Radii& radii)
      : kernels_(kernels),
        points_(points),
        slack_(1 + 8 * distance_error(points.channels)),
        near_(std::sqrt(static_cast<double>(radii.near))),
        columns_(points.channels, 0),
        middles_(points.channels, 0) {
    std::vector<int32_t> group = nearest_pivots(members, radii.near);
    put_balls_first(group);
    place(members, group);
    measure(members, group);
    find_neighbours();
  }

  int64_t count() const { return count_; }
  // The places of its points among those of all groups.
  int64_t begin(int64_t g) const { return first_[static_cast<size_t>(g)]; }
  int64_t end(int64_t g) const { return first_[static_cast<size_t>(g + 1)]; }
  int64_t size(int64_t g) const { return end(g) - begin(g); }
  int64_t padded() const { return whole_blocks(first_.back()); }
  Columns columns() const { return columns_.view(); }
  const int32_t* index() const { return index_.data(); }  // [padded] points by their places
  float radius(int64_t g) const { return radius_[static_cast<size_t>(g)]; }

  // The groups, g among them, that may hold a point near one of g; perhaps in buffer.
  const int32_t* neighbours(int64_t g, std::vector<int32_t>& buffer, int64_t& number) const {
    number = neighbour_count_[static_cast<size_t>(g)];
    if (number <= kStored) {
      return neighbours_.data() + g * kStored;
    }
    buffer.resize(static_cast<size_t>(count() + 1));
    number = find(g, buffer.data());
    return buffer.data();
  }

  // Whether all points of g are near each other, and no others are near them.
  bool alone(int64_t g) const {
    return neighbour_count_[static_cast<size_t>(g)] == 1 && 2.0 * radius(g) < near_;
  }

  // Whether a point q may be nearer than `reach` to one of the group h.
  bool may_reach(const float* q, int64_t h, double reach) const {
    const double longest = (radius(h) + reach) * slack_;
    return square_to_middle(q, h) <= longest * longest;
  }

 private:
  static constexpr int64_t kStored = 48;  // neighbours of a group; of more they are found anew

  // Of each member the number of a pivot near it; pivots are members.
  std::vector<int32_t> nearest_pivots(const std::vector<int32_t>& members, float near) {
    ColumnStore pivots(points_.channels, 64);
    std::vector<int32_t> group(members.size());
    int64_t last = -1;
    for (size_t i = 0; i < members.size(); ++i) {
      const float* q = points_.row(members[i]);
      int64_t found = -1;
      if (last >= 0) {  // what is next to each other is often alike
        const int64_t block = last / kBlock * kBlock;
        found = kernels_.first_within(pivots.view(), block, block + kBlock, q, near);
      }
      if (found < 0) {
        found = kernels_.first_within(pivots.view(), 0, pivots.count(), q, near);
      }
      if (found < 0) {
        found = pivots.count();
        pivots.push(q);
      }
      group[i] = static_cast<int32_t>(found);
      last = found;
    }
    count_ = pivots.count();
    return group;
  }

  void put_balls_first(std::vector<int32_t>& group) {
    std::vector<int64_t> sizes(static_cast<size_t>(count()));
    for (const int32_t g : group) {
      ++sizes[static_cast<size_t>(g)];
    }
    balls_ = std::count_if(sizes.begin(), sizes.end(), [](int64_t size) { return size > 1; });
    std::vector<int32_t> number(sizes.size());
    int32_t ball = 0, single = static_cast<int32_t>(balls_);
    for (size_t g = 0; g < sizes.size(); ++g) {
      number[g] = sizes[g] > 1 ? ball++ : single++;
    }
    first_.assign(sizes.size() + 1, 0);
    for (size_t g = 0; g < sizes.size(); ++g) {
      first_[static_cast<size_t>(number[g]) + 1] = sizes[g];
    }
    std::partial_sum(first_.begin(), first_.end(), first_.begin());
    for (int32_t& g : group) {
      g = number[static_cast<size_t>(g)];
    }
  }

  // Points in the order of their groups.
  void place(const std::vector<int32_t>& members, const std::vector<int32_t>& group) {
    std::vector<int64_t> next(first_.begin(), first_.end() - 1);
    columns_ = ColumnStore(points_.channels, padded());
    index_.resize(static_cast<size_t>(padded()));
    for (size_t i = 0; i < members.size(); ++i) {
      const int64_t at = next[static_cast<size_t>(group[i])]++;
      columns_.set(at, points_.row(members[i]));
      index_[static_cast<size_t>(at)] = members[i];
    }
  }

  // Middles, about the means, and radii around them.
  void measure(const std::vector<int32_t>& members, const std::vector<int32_t>& group) {
    const int64_t channels = points_.channels;
    std::vector<float> sums(static_cast<size_t>(count() * channels));
    for (size_t i = 0; i < members.size(); ++i) {
      const float share = 1.0f / static_cast<float>(size(group[i]));
      float* sum = sums.data() + group[i] * channels;
      const float* row = points_.row(members[i]);
      for (int64_t c = 0; c < channels; ++c) {
        sum[c] += row[c] * share;
      }
    }
    middles_ = ColumnStore(channels, count());
    radius_.assign(static_cast<size_t>(whole_blocks(count())), 0);
    std::vector<float> squares;
    for (int64_t g = 0; g < count(); ++g) {
      const float* middle = sums.data() + g * channels;
      middles_.push(middle);
      if (g < balls_) {
        const int64_t first = begin(g) / kBlock * kBlock;
        squares.resize(static_cast<size_t>(whole_blocks(end(g) - first)));
        kernels_.distances(columns_.view(), first, end(g), middle, squares.data());
        const float most = *std::max_element(squares.begin() + (begin(g) - first),
                                             squares.begin() + (end(g) - first));
        radius_[static_cast<size_t>(g)] = static_cast<float>(std::sqrt(most) * slack_);
      }
    }
    middle_rows_ = std::move(sums);
  }

  void find_neighbours() {
    neighbours_.resize(static_cast<size_t>(count() * kStored));
    neighbour_count_.resize(static_cast<size_t>(count()));
    at::parallel_for(0, count(), 256, [&](int64_t first, int64_t last) {
      std::vector<int32_t> found(static_cast<size_t>(count() + 1));
      for (int64_t g = first; g < last; ++g) {
        const int64_t number = find(g, found.data());
        neighbour_count_[static_cast<size_t>(g)] = static_cast<int32_t>(number);
        std::copy_n(found.data(), std::min(number, kStored), neighbours_.data() + g * kStored);
      }
    });
  }

  int64_t find(int64_t g, int32_t* found) const {
    const auto reach = static_cast<float>((radius(g) + near_) * slack_);
    const int64_t number =
        kernels_.within_radii(middles_.view(), radius_.data(), 0, g < balls_ ? count() : balls_,
                              middle_rows_.data() + g * points_.channels, reach, found);
    if (g >= balls_) {
      found[number] = static_cast<int32_t>(g);
      return number + 1;
    }
    return number;
  }

  double square_to_middle(const float* q, int64_t h) const {
    const float* middle = middle_rows_.data() + h * points_.channels;
    float s = 0;
    for (int64_t c = 0; c < points_.channels; ++c) {
      const float t = q[c] - middle[c];
      s += t * t;
    }
    return s;
  }

  const ClusterKernels& kernels_;
  const Points& points_;
  double slack_;  // for the rounding of squares, of their roots and of sums of these
  double near_;
  int64_t count_ = 0;
  int64_t balls_ = 0;
  std::vector<int64_t> first_;  // [groups + 1]
  std::vector<int32_t> index_;
  ColumnStore columns_;
  ColumnStore middles_;
  std::vector<float> middle_rows_;  // [groups, D]
  std::vector<float> radius_;       // [padded groups]
  std::vector<int32_t> neighbours_;
  std::vector<int32_t> neighbour_count_;
};

}  // namespace discloss::cpu::clustering
