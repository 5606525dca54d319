// A batch as the kernels see it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "common/layout.h"
#include "common/strides.h"
#include "pixels.h"

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

}  // namespace discloss::cpu
