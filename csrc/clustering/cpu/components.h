// Components of equal labels on the grid, by runs of pixels of a row: fragments that join what is
// around them, and components that become instances of their own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "foreground.h"

namespace discloss::cpu::clustering {

// The spatial axes, of one row and more. Rows are along the last.
struct Grid {
  std::vector<int64_t> sizes;
  int64_t width() const { return sizes.back(); }
};

class Components {
 public:
  // Pixels whose bit is set are connected by shared faces where their labels are equal.
  Components(const Grid& grid, const std::vector<uint64_t>& foreground, int32_t* labels)
      : grid_(grid), labels_(labels) {
    find_runs(foreground);
  }

  // Components of fewer than `fragment` pixels take the label of the component of at least so many
  // with which they share most faces (ties: the lower label), all at once.
  void join_fragments(int64_t fragment) {
    connect();
    Borders borders(runs_.size());
    for_each_border([&](int64_t i, int64_t j, int64_t faces) {
      note(i, j, faces, fragment, borders);
      note(j, i, faces, fragment, borders);
    });
    std::vector<int32_t> taken(runs_.size());  // label of a small component, by its root
    for (size_t small = 0; small < runs_.size(); ++small) {
      int64_t longest = 0;
      for (int32_t at = borders.first[small]; at >= 0;
           at = borders.all[static_cast<size_t>(at)].next) {
        const auto& border = borders.all[static_cast<size_t>(at)];
        const int32_t label = run(border.large).label;
        if (border.faces > longest || (border.faces == longest && label < taken[small])) {
          longest = border.faces;
          taken[small] = label;
        }
      }
    }
    for (size_t i = 0; i < runs_.size(); ++i) {
      const int32_t label = taken[static_cast<size_t>(root_[i])];
      if (label > 0) {
        write(runs_[i], label);
      }
    }
  }

  // Every component of a label with at least min_size pixels gets a label of its own, in the order
  // of first pixels, others 0; where they are more than `most`, the largest stay. rows: the label
  // that each had; whether some found no room.
  bool separate(int64_t min_size, int64_t most, std::vector<int32_t>& rows) {
    connect();
    std::vector<int64_t> kept;
    for (size_t i = 0; i < runs_.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      if (root_[i] == at && runs_[i].label > 0 && size_[i] >= min_size) {
        kept.push_back(at);
      }
    }
    const bool truncated = static_cast<int64_t>(kept.size()) > most;
    if (truncated) {
      std::stable_sort(kept.begin(), kept.end(), [&](int64_t a, int64_t b) {
        return size_[static_cast<size_t>(a)] > size_[static_cast<size_t>(b)];
      });
      kept.resize(static_cast<size_t>(most));
      std::sort(kept.begin(), kept.end());
    }
    std::vector<int32_t> number(runs_.size());
    for (const int64_t i : kept) {
      rows.push_back(runs_[static_cast<size_t>(i)].label);
      number[static_cast<size_t>(i)] = static_cast<int32_t>(rows.size());
    }
    for (size_t i = 0; i < runs_.size(); ++i) {
      if (runs_[i].label > 0) {
        write(runs_[i], number[static_cast<size_t>(root_[i])]);
      }
    }
    return truncated;
  }

 private:
  struct Run {
    int64_t begin;
    int32_t length;
    int32_t label;
    int64_t end() const { return begin + length; }
  };

  // What each small component shares with large ones, as lists by its root.
  struct Borders {
    explicit Borders(size_t roots) : first(roots, -1) {}

    void add(int64_t small, int64_t large, int64_t faces) {
      int32_t at = first[static_cast<size_t>(small)];
      while (at >= 0 && all[static_cast<size_t>(at)].large != large) {
        at = all[static_cast<size_t>(at)].next;
      }
      if (at >= 0) {
        all[static_cast<size_t>(at)].faces += faces;
      } else {
        all.push_back({large, faces, first[static_cast<size_t>(small)]});
        first[static_cast<size_t>(small)] = static_cast<int32_t>(all.size()) - 1;
      }
    }

    struct Border {
      int64_t large;
      int64_t faces;
      int32_t next;
    };
    std::vector<Border> all;
    std::vector<int32_t> first;
  };

  void find_runs(const std::vector<uint64_t>& foreground) {
    const int64_t pixels = std::accumulate(grid_.sizes.begin(), grid_.sizes.end(), int64_t{1},
                                           std::multiplies<int64_t>());
    const int64_t width = grid_.width();
    first_run_.push_back(0);
    for (int64_t row = 0; row < pixels; row += width) {
      for (int64_t i = next_bit(foreground, row, row + width); i < row + width;) {
        const int32_t label = labels_[i];
        const int64_t gap = next_gap(foreground, i, row + width);
        int64_t end = i + 1;
        while (end < gap && labels_[end] == label) {
          ++end;
        }
        runs_.push_back({i, static_cast<int32_t>(end - i), label});
        i = end < gap ? end : next_bit(foreground, gap, row + width);
      }
      first_run_.push_back(static_cast<int64_t>(runs_.size()));
    }
  }

  // The first pixel from i on whose bit is set, or end.
  static int64_t next_bit(const std::vector<uint64_t>& bits, int64_t i, int64_t end) {
    while (i < end) {
      const uint64_t rest = bits[static_cast<size_t>(i / 64)] >> (i % 64);
      if (rest != 0) {
        return std::min(end, i + __builtin_ctzll(rest));
      }
      i = i / 64 * 64 + 64;
    }
    return end;
  }

  // The first pixel from i on whose bit is not set, or end.
  static int64_t next_gap(const std::vector<uint64_t>& bits, int64_t i, int64_t end) {
    while (i < end) {
      const uint64_t rest = ~bits[static_cast<size_t>(i / 64)] >> (i % 64);
      if (rest != 0) {
        return std::min(end, i + __builtin_ctzll(rest));
      }
      i = i / 64 * 64 + 64;
    }
    return end;
  }

  // Calls body(run, run, faces) for each two that share faces, the earlier first.
  template <typename Body>
  void for_each_border(const Body& body) const {
    const auto rows = static_cast<int64_t>(first_run_.size()) - 1;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t end = first_run_[static_cast<size_t>(row + 1)];
      for (int64_t i = first_run_[static_cast<size_t>(row)]; i + 1 < end; ++i) {
        if (run(i).end() == run(i + 1).begin) {
          body(i, i + 1, int64_t{1});
        }
      }
    }
    int64_t stride = 1;  // in rows
    for (size_t axis = grid_.sizes.size() - 1; axis-- > 0;) {
      for (int64_t row = 0; row < rows; ++row) {
        if (row / stride % grid_.sizes[axis] > 0) {
          for_each_overlap(row - stride, row, body);
        }
      }
      stride *= grid_.sizes[axis];
    }
  }

  template <typename Body>
  void for_each_overlap(int64_t row, int64_t later_row, const Body& body) const {
    const int64_t shift = (later_row - row) * grid_.width();
    int64_t i = first_run_[static_cast<size_t>(row)];
    int64_t j = first_run_[static_cast<size_t>(later_row)];
    const int64_t i_end = first_run_[static_cast<size_t>(row + 1)];
    const int64_t j_end = first_run_[static_cast<size_t>(later_row + 1)];
    while (i < i_end && j < j_end) {
      const int64_t end = std::min(run(i).end() + shift, run(j).end());
      const int64_t faces = end - std::max(run(i).begin + shift, run(j).begin);
      if (faces > 0) {
        body(i, j, faces);
      }
      if (run(i).end() + shift < run(j).end()) {
        ++i;
      } else {
        ++j;
      }
    }
  }

  const Run& run(int64_t i) const { return runs_[static_cast<size_t>(i)]; }

  int64_t find_root(int64_t i) {
    while (root_[static_cast<size_t>(i)] != i) {
      root_[static_cast<size_t>(i)] = root_[static_cast<size_t>(root_[static_cast<size_t>(i)])];
      i = root_[static_cast<size_t>(i)];
    }
    return i;
  }

  // The components by union of runs; the root of one is its first run.
  void connect() {
    root_.resize(runs_.size());
    std::iota(root_.begin(), root_.end(), 0);
    for_each_border([&](int64_t i, int64_t j, int64_t) {
      if (run(i).label == run(j).label) {
        const int64_t a = find_root(i), b = find_root(j);
        root_[static_cast<size_t>(std::max(a, b))] = static_cast<int32_t>(std::min(a, b));
      }
    });
    size_.assign(runs_.size(), 0);
    for (size_t i = 0; i < runs_.size(); ++i) {
      root_[i] = static_cast<int32_t>(find_root(static_cast<int64_t>(i)));
      size_[static_cast<size_t>(root_[i])] += runs_[i].length;
    }
  }

  void note(int64_t i, int64_t j, int64_t faces, int64_t fragment, Borders& borders) const {
    const int64_t small = root_[static_cast<size_t>(i)], large = root_[static_cast<size_t>(j)];
    if (run(j).label > 0 && size_[static_cast<size_t>(small)] < fragment &&
        size_[static_cast<size_t>(large)] >= fragment) {
      borders.add(small, large, faces);
    }
  }

  void write(Run& run, int32_t label) {
    if (run.label != label) {
      run.label = label;
      std::fill_n(labels_ + run.begin, run.length, label);
    }
  }

  const Grid& grid_;
  int32_t* labels_;
  std::vector<Run> runs_;
  std::vector<int64_t> first_run_;  // [rows + 1]
  std::vector<int32_t> root_;       // [runs]
  std::vector<int64_t> size_;       // [runs] pixels of a component, by its root
};

}  // namespace discloss::cpu::clustering
