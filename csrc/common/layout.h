// How embeddings lie in memory, so that the passes read and write them in place.
#pragma once

#include <ATen/TensorUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <cstdint>

#include "strides.h"

namespace discloss {

// Embeddings as [B, D, N] (or [N_total, D] for a packed batch, with image stride 0) whose channel
// or pixel stride is 1: contiguous and channels-last tensors and their slices as they are; a copy
// of any other.
struct EmbeddingView {
  at::Tensor tensor;
  Strides strides;
};

namespace detail {

// Strides of one element along image, channel and pixel, or none if the spatial axes do not merge.
inline std::optional<Strides> merged_strides(const at::Tensor& embeddings, bool packed) {
  if (packed) {
    return Strides{0, embeddings.stride(1), embeddings.stride(0)};
  }
  const int64_t images = embeddings.size(0), channels = embeddings.size(1);
  const int64_t pixels = embeddings.numel() == 0 ? 0 : embeddings.numel() / (images * channels);
  const at::DimVector shape = {images, channels, pixels};
  if (embeddings.numel() == 0) {
    return Strides{channels * pixels, pixels, 1};
  }
  const auto strides = at::detail::computeStride(embeddings.sizes(), embeddings.strides(), shape);
  if (!strides.has_value()) {
    return std::nullopt;
  }
  return Strides{(*strides)[0], (*strides)[1], (*strides)[2]};
}

// An axis of one element can have any stride: give it the one that makes the layout readable.
inline bool readable(Strides& strides, int64_t channels, int64_t pixels) {
  if (strides.pixel != 1 && strides.channel != 1) {
    if (pixels == 1) {
      strides.pixel = 1;
    } else if (channels == 1) {
      strides.channel = 1;
    }
  }
  return strides.pixel == 1 || strides.channel == 1;
}

inline std::optional<Strides> in_place_strides(const at::Tensor& embeddings, bool packed) {
  auto strides = merged_strides(embeddings, packed);
  if (strides.has_value()) {
    const int64_t channels = embeddings.size(1);
    const int64_t lanes = embeddings.size(0) * channels;
    const int64_t pixels = packed       ? embeddings.size(0)
                           : lanes == 0 ? 0
                                        : embeddings.numel() / lanes;
    if (!readable(*strides, channels, pixels)) {
      return std::nullopt;
    }
  }
  return strides;
}

}  // namespace detail

inline EmbeddingView readable_view(const at::Tensor& embeddings, bool packed) {
  if (const auto strides = detail::in_place_strides(embeddings, packed)) {
    return {embeddings, *strides};
  }
  const at::Tensor copy = embeddings.contiguous();
  return {copy, *detail::in_place_strides(copy, packed)};
}

// The gradient to return, laid out as empty_like(embeddings), and a view of it that a pass can
// write: the gradient itself where its layout allows, else a buffer to be copied into it.
struct GradientBuffer {
  at::Tensor gradient;
  EmbeddingView view;

  at::Tensor finish() const {
    if (!view.tensor.is_same(gradient)) {
      gradient.copy_(view.tensor);
    }
    return gradient;
  }
};

// gradient: as at::empty_like(embeddings) gives it
inline GradientBuffer gradient_buffer(const at::Tensor& gradient, bool packed) {
  if (const auto strides = detail::in_place_strides(gradient, packed)) {
    return {gradient, {gradient, *strides}};
  }
  const at::Tensor buffer = at::empty_like(gradient, {}, at::MemoryFormat::Contiguous);
  return {gradient, {buffer, *detail::in_place_strides(buffer, packed)}};
}

}  // namespace discloss
