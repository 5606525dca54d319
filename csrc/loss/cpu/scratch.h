// The memory behind Scratch.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels.h"

namespace discloss::cpu {

// The memory behind Scratch, in whole cache lines: a vector that lies across two costs twice.
template <typename accscalar_t>
class ScratchMemory {
 public:
  explicit ScratchMemory(int64_t channels)
      : pitch_(tile_pitch(channels)),
        lines_(
            new Line[static_cast<size_t>(pitch_ * (padded_channels(channels) + 2)) / kLineNumbers]),
        runs_(new Run[static_cast<size_t>(pitch_)]) {}

  Scratch<accscalar_t> scratch() {
    accscalar_t* numbers = lines_[0].numbers;
    return {numbers + 2 * pitch_, numbers, numbers + pitch_, runs_.get()};
  }

 private:
  static constexpr int64_t kLineBytes = 64, kLineNumbers = kLineBytes / sizeof(accscalar_t);
  struct alignas(kLineBytes) Line {
    accscalar_t numbers[kLineNumbers];
  };

  int64_t pitch_;
  // Not cleared: nothing is read that was not written.
  std::unique_ptr<Line[]> lines_;
  std::unique_ptr<Run[]> runs_;
};

}  // namespace discloss::cpu
