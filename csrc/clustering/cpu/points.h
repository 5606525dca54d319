// Points by row and by channel, as the clustering keeps them in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.h"

namespace discloss::cpu::clustering {

// Numbers in whole cache lines.
class Floats {
 public:
  void resize(int64_t count) { lines_.resize(static_cast<size_t>((count + 15) / 16)); }
  float* data() { return lines_.empty() ? nullptr : lines_.front().numbers; }
  const float* data() const { return lines_.empty() ? nullptr : lines_.front().numbers; }

 private:
  struct alignas(64) Line {
    float numbers[16];
  };
  std::vector<Line> lines_;
};

constexpr int64_t whole_blocks(int64_t points) { return (points + kBlock - 1) / kBlock * kBlock; }

// Points in blocks, that grow one by one; the last block is padded by infinity, which is near
// nothing.
class ColumnStore {
 public:
  ColumnStore(int64_t channels, int64_t capacity) : channels_(channels) { grow(capacity); }

  int64_t count() const { return count_; }
  Columns view() const { return {values_.data(), channels_}; }

  void set(int64_t i, const float* row) {
    float* values = values_.data() + i / kBlock * kBlock * channels_ + i % kBlock;
    for (int64_t c = 0; c < channels_; ++c) {
      values[c * kBlock] = row[c];
    }
  }

  void push(const float* row) {
    if (count_ == capacity_) {
      grow(2 * count_);
    }
    set(count_++, row);
  }

 private:
  void grow(int64_t capacity) {
    const int64_t before = capacity_ * channels_;
    capacity_ = whole_blocks(capacity > 0 ? capacity : 1);
    values_.resize(capacity_ * channels_);
    std::fill(values_.data() + before, values_.data() + capacity_ * channels_,
              std::numeric_limits<float>::infinity());
  }

  int64_t channels_;
  int64_t count_ = 0;
  int64_t capacity_ = 0;
  Floats values_;
};

// Points by row, with the number of the class of each.
struct Points {
  int64_t channels;
  std::vector<float> rows;       // [n, D]
  std::vector<int32_t> classes;  // [n]

  int64_t count() const { return static_cast<int64_t>(classes.size()); }
  const float* row(int64_t i) const { return rows.data() + i * channels; }
  void push(const float* point, int32_t of_class) {
    rows.insert(rows.end(), point, point + channels);
    classes.push_back(of_class);
  }
};

}  // namespace discloss::cpu::clustering
