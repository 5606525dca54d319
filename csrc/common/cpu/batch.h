// A batch as the kernels see it.
#pragma once

#include <ATen/Version.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "common/layout.h"
#include "common/strides.h"
#include "loss/cpu/kernels.h"

namespace discloss::cpu {

// Images of a packed batch, whose offsets are contiguous, or of a dense one.
inline Images images_of(const at::Tensor& pixels, const at::Tensor& offsets) {
  if (offsets.defined()) {
    return {offsets.numel() - 1, 0, offsets.const_data_ptr<int64_t>()};
  }
  const int64_t count = pixels.size(0);
  return {count, count == 0 ? 0 : pixels.numel() / count, nullptr};
}

inline at::Tensor contiguous_offsets(const std::optional<at::Tensor>& offsets) {
  return offsets.has_value() ? offsets->contiguous() : at::Tensor();
}

// Embeddings and slots of a batch.
template <typename scalar_t>
struct BatchPixels {
  const scalar_t* embeddings;
  const scalar_t* end;
  Strides strides;
  int64_t channels;
  Images images;
  const int32_t* slots;

  BatchPixels(const EmbeddingView& view, const Images& images_of_batch, const at::Tensor& slots_)
      : embeddings(view.tensor.const_data_ptr<scalar_t>()),
        end(embeddings),
        strides(view.strides),
        channels(view.tensor.size(1)),
        images(images_of_batch),
        slots(slots_.const_data_ptr<int32_t>()) {
    if (view.tensor.numel() > 0) {
      ++end;
      for (int64_t axis = 0; axis < view.tensor.dim(); ++axis) {
        end += (view.tensor.size(axis) - 1) * view.tensor.stride(axis);
      }
    }
  }

  // Pixels begin <= i < end of image b.
  Pixels<scalar_t> range(int64_t b, int64_t begin, int64_t last) const {
    return {embeddings + images.embedding(b, strides) + begin * strides.pixel,
            end,
            strides.channel,
            strides.pixel,
            channels,
            slots + images.begin(b) + begin,
            last - begin};
  }
};

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

// The best table that this processor can run, within what ATEN_CPU_CAPABILITY allows torch.
template <typename scalar_t>
const Kernels<scalar_t>& best_kernels(int64_t norm, int64_t channels) {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return avx512::kernels<scalar_t>(norm, channels);
  }
  if (capability == "AVX2") {
    return avx2::kernels<scalar_t>(norm, channels);
  }
#endif
  return baseline::kernels<scalar_t>(norm, channels);
}

}  // namespace discloss::cpu
