// Steps 2 and 3: density, parents, trees. What is skipped is shown to change nothing:
//   - a point's parent is nearer than `near`, so a tree lies in groups that hang together; where
//     these have fewer points than a tree that is kept, nothing is looked at;
//   - a group whose points are near each other, with nothing near it, is one tree;
//   - so are the points of a group that are near its densest, each nearer to it than to any denser
//     point of another group.
#pragma once

#include <numeric>
#include <vector>

#include "groups.h"

namespace discloss::cpu::clustering {

// Trees in the order of their first members.
struct Trees {
  Points modes;
  std::vector<int32_t> weight;
};

class TreeSearch {
 public:
  TreeSearch(const ClusterKernels& kernels, const Points& sample, const Radii& radii, int64_t least)
      : kernels_(kernels),
        sample_(sample),
        radii_(radii),
        least_(least),
        parent_(sample.classes.size(), kNone) {}

  Trees find(int64_t classes) {
    std::vector<std::vector<int32_t>> members(static_cast<size_t>(classes));
    for (int64_t i = 0; i < sample_.count(); ++i) {
      members[static_cast<size_t>(sample_.classes[static_cast<size_t>(i)])].push_back(
          static_cast<int32_t>(i));
    }
    for (const auto& of_class : members) {
      if (static_cast<int64_t>(of_class.size()) >= least_) {
        const Groups groups(kernels_, sample_, of_class, radii_);
        find_parents(groups);
      }
    }
    return means();
  }

 private:
  static constexpr int32_t kNone = -1;  // of a point whose tree is not kept

  void find_parents(const Groups& groups) {
    const std::vector<uint8_t> kind = kinds(groups);
    find_densities(groups, kind);
    at::parallel_for(0, groups.count(), 16, [&](int64_t first, int64_t last) {
      Buffers buffers;
      for (int64_t g = first; g < last; ++g) {
        if (kind[static_cast<size_t>(g)] == kOneTree) {
          hang_all(groups, g, groups.begin(g));
        } else if (kind[static_cast<size_t>(g)] == kSearched) {
          hang(groups, g, buffers);
        }
      }
    });
  }

  enum Kind : uint8_t { kTooFew, kOneTree, kSearched };

  struct Buffers {
    std::vector<int32_t> neighbours;
    std::vector<float> squares;
  };

  std::vector<uint8_t> kinds(const Groups& groups) const {
    const int64_t count = groups.count();
    std::vector<int32_t> above(static_cast<size_t>(count));
    std::iota(above.begin(), above.end(), 0);
    const auto root = [&](int32_t g) {
      while (above[static_cast<size_t>(g)] != g) {
        above[static_cast<size_t>(g)] = above[static_cast<size_t>(above[static_cast<size_t>(g)])];
        g = above[static_cast<size_t>(g)];
      }
      return g;
    };
    std::vector<int32_t> buffer;
    for (int64_t g = 0; g < count; ++g) {
      int64_t number;
      const int32_t* near = groups.neighbours(g, buffer, number);
      for (int64_t i = 0; i < number; ++i) {
        const int32_t a = root(static_cast<int32_t>(g)), b = root(near[i]);
        above[static_cast<size_t>(std::max(a, b))] = std::min(a, b);
      }
    }
    std::vector<int64_t> points(static_cast<size_t>(count));
    for (int64_t g = 0; g < count; ++g) {
      points[static_cast<size_t>(root(static_cast<int32_t>(g)))] += groups.size(g);
    }
    std::vector<uint8_t> kind(static_cast<size_t>(count));
    for (int64_t g = 0; g < count; ++g) {
      const bool enough = points[static_cast<size_t>(root(static_cast<int32_t>(g)))] >= least_;
      kind[static_cast<size_t>(g)] = !enough ? kTooFew : groups.alone(g) ? kOneTree : kSearched;
    }
    return kind;
  }

  const float* point_at(const Groups& groups, int64_t at) const {
    return sample_.row(groups.index()[at]);
  }

  // Each pair of groups once, by one of the threads, which have sums of their own.
  void find_densities(const Groups& groups, const std::vector<uint8_t>& kind) {
    const int64_t parts = sample_.count() < 1024 ? 1 : at::get_num_threads();
    std::vector<std::vector<int32_t>> sums(static_cast<size_t>(parts));
    at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      Buffers buffers;
      for (int64_t part = first; part < last; ++part) {
        auto& sum = sums[static_cast<size_t>(part)];
        sum.assign(static_cast<size_t>(groups.padded()), 0);
        for (int64_t g = part; g < groups.count(); g += parts) {
          if (kind[static_cast<size_t>(g)] == kSearched) {
            add_densities(groups, g, buffers, sum.data());
          }
        }
      }
    });
    densities_ = std::move(sums[0]);
    for (size_t part = 1; part < sums.size(); ++part) {
      for (size_t at = 0; at < densities_.size(); ++at) {
        densities_[at] += sums[part][at];
      }
    }
    densest_.resize(static_cast<size_t>(groups.count()));
    for (int64_t g = 0; g < groups.count(); ++g) {
      densest_[static_cast<size_t>(g)] = *std::max_element(densities_.begin() + groups.begin(g),
                                                           densities_.begin() + groups.end(g));
    }
  }

  // Pairs of points of group g, and of it and later groups.
  void add_densities(const Groups& groups, int64_t g, Buffers& buffers, int32_t* sums) const {
    const double h = std::sqrt(static_cast<double>(radii_.density));
    const auto add = [&](int64_t at, int64_t other, int32_t* to) {
      return static_cast<int32_t>(kernels_.density(groups.columns(), groups.begin(other),
                                                   groups.end(other), point_at(groups, at),
                                                   radii_.density, radii_.slope, to));
    };
    for (int64_t at = groups.begin(g); at < groups.end(g); ++at) {
      sums[at] += add(at, g, nullptr);
    }
    int64_t number;
    const int32_t* near = groups.neighbours(g, buffers.neighbours, number);
    for (int64_t i = 0; i < number; ++i) {
      if (near[i] <= g) {
        continue;
      }
      const bool larger = groups.size(g) > groups.size(near[i]);
      const int64_t from = larger ? near[i] : g, to = larger ? g : near[i];
      for (int64_t at = groups.begin(from); at < groups.end(from); ++at) {
        if (is_small(groups, to) || groups.may_reach(point_at(groups, at), to, h)) {
          sums[at] += add(at, to, sums);
        }
      }
    }
  }

  // To look at one or two blocks takes no longer than to ask whether it is needed.
  static bool is_small(const Groups& groups, int64_t g) { return groups.size(g) <= 2 * kBlock; }

  void hang_all(const Groups& groups, int64_t g, int64_t on) {
    for (int64_t at = groups.begin(g); at < groups.end(g); ++at) {
      parent_[static_cast<size_t>(groups.index()[at])] = groups.index()[on];
    }
  }

  void hang(const Groups& groups, int64_t g, Buffers& buffers) {
    int64_t number;
    const int32_t* near = groups.neighbours(g, buffers.neighbours, number);
    int64_t top = groups.begin(g);  // equal ones: the first, which has the lowest index
    const int64_t end = groups.end(g);
    for (int64_t at = top + 1; at < end; ++at) {
      if (densities_[static_cast<size_t>(at)] > densities_[static_cast<size_t>(top)]) {
        top = at;
      }
    }
    if (is_one_tree(groups, g, top, near, number, buffers)) {
      hang_all(groups, g, top);
      hang_point(groups, g, top, near, number);
    } else {
      for (int64_t at = groups.begin(g); at < end; ++at) {
        hang_point(groups, g, at, near, number);
      }
    }
  }

  // Whether every point but the densest has its parent in the group, which then is one tree.
  bool is_one_tree(const Groups& groups, int64_t g, int64_t top, const int32_t* near,
                   int64_t number, Buffers& buffers) const {
    const int64_t first = groups.begin(g) / kBlock * kBlock;
    buffers.squares.resize(static_cast<size_t>(whole_blocks(groups.end(g) - first)));
    kernels_.distances(groups.columns(), first, groups.end(g), point_at(groups, top),
                       buffers.squares.data());
    for (int64_t at = groups.begin(g); at < groups.end(g); ++at) {
      const float square = buffers.squares[static_cast<size_t>(at - first)];
      if (at == top) {
        continue;
      }
      if (!(square < radii_.near)) {
        return false;
      }
      const double distance = std::sqrt(static_cast<double>(square));
      for (int64_t i = 0; i < number; ++i) {
        const int64_t h = near[i];
        if (h != g && densest_[static_cast<size_t>(h)] >= densities_[static_cast<size_t>(at)] &&
            groups.may_reach(point_at(groups, at), h, distance)) {
          return false;
        }
      }
    }
    return true;
  }

  void hang_point(const Groups& groups, int64_t g, int64_t at, const int32_t* near,
                  int64_t number) {
    const int32_t index = groups.index()[at];
    const float* q = sample_.row(index);
    Denser point = {densities_[static_cast<size_t>(at)], index, radii_.near, index};
    const auto look = [&](int64_t h) {
      kernels_.nearest_denser(groups.columns(), densities_.data(), groups.index(), groups.begin(h),
                              groups.end(h), q, point);
    };
    look(g);
    for (int64_t i = 0; i < number; ++i) {
      const int64_t h = near[i];
      if (h != g && densest_[static_cast<size_t>(h)] >= point.density &&
          (is_small(groups, h) ||
           groups.may_reach(q, h, std::sqrt(static_cast<double>(point.square))))) {
        look(h);
      }
    }
    parent_[static_cast<size_t>(index)] = point.parent;
  }

  int32_t root(int32_t i) {
    while (parent_[static_cast<size_t>(i)] != i) {
      const int32_t up = parent_[static_cast<size_t>(i)];
      parent_[static_cast<size_t>(i)] = parent_[static_cast<size_t>(up)];
      i = parent_[static_cast<size_t>(i)];
    }
    return i;
  }

  // Trees of enough points: sums in fixed point, whose order does not matter.
  Trees means() {
    const int64_t n = sample_.count(), channels = sample_.channels;
    std::vector<int32_t> weight(static_cast<size_t>(n));  // of a root
    for (int32_t i = 0; i < n; ++i) {
      if (parent_[static_cast<size_t>(i)] != kNone) {
        ++weight[static_cast<size_t>(root(i))];
      }
    }
    float most = 0;
    for (const float x : sample_.rows) {
      most = std::max(most, std::fabs(x));
    }
    int exponent;
    std::frexp(most, &exponent);
    const double scale = std::ldexp(1.0, 40 - exponent);
    Trees trees = {{channels, {}, {}}, {}};
    std::vector<int32_t> tree(static_cast<size_t>(n), kNone);  // of a root
    std::vector<int64_t> sums;
    for (int32_t i = 0; i < n; ++i) {
      if (parent_[static_cast<size_t>(i)] == kNone) {
        continue;
      }
      const int32_t at = root(i);
      if (weight[static_cast<size_t>(at)] < least_) {
        continue;
      }
      int32_t& number = tree[static_cast<size_t>(at)];
      if (number == kNone) {
        number = static_cast<int32_t>(trees.weight.size());
        trees.weight.push_back(weight[static_cast<size_t>(at)]);
        trees.modes.classes.push_back(sample_.classes[static_cast<size_t>(i)]);
        sums.resize(sums.size() + static_cast<size_t>(channels));
      }
      int64_t* sum = sums.data() + number * channels;
      const float* x = sample_.row(i);
      for (int64_t c = 0; c < channels; ++c) {
        sum[c] += std::llrint(static_cast<double>(x[c]) * scale);
      }
    }
    const double unit = std::ldexp(1.0, exponent - 40);
    for (size_t k = 0; k < trees.weight.size(); ++k) {
      for (int64_t c = 0; c < channels; ++c) {
        const auto sum = static_cast<double>(sums[k * static_cast<size_t>(channels) + c]);
        trees.modes.rows.push_back(static_cast<float>(sum / trees.weight[k] * unit));
      }
    }
    return trees;
  }

  const ClusterKernels& kernels_;
  const Points& sample_;
  const Radii& radii_;
  int64_t least_;
  std::vector<int32_t> parent_;     // [n]
  std::vector<int32_t> densities_;  // [padded], by the places of points in groups
  std::vector<int32_t> densest_;    // [groups]
};

}  // namespace discloss::cpu::clustering
