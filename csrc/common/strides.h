// Addresses of embeddings and pixels; torch-free, for host and device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace discloss {

// In elements. Image stride is unused for a packed batch.
struct Strides {
  int64_t image;
  int64_t channel;
  int64_t pixel;
};

// The images of a batch. Pixel i of image b is element begin(b) + i of labels and slots.
struct Images {
  int64_t count;           // B
  int64_t pixels;          // N of every image of a dense batch
  const int64_t* offsets;  // [B + 1] of a packed batch, else null

  DISCLOSS_HOST_DEVICE int64_t begin(int64_t b) const {
    return offsets != nullptr ? offsets[b] : b * pixels;
  }
  DISCLOSS_HOST_DEVICE int64_t size(int64_t b) const {
    return offsets != nullptr ? offsets[b + 1] - offsets[b] : pixels;
  }
  // Offset in elements of an image's first embedding.
  DISCLOSS_HOST_DEVICE int64_t embedding(int64_t b, const Strides& strides) const {
    return offsets != nullptr ? offsets[b] * strides.pixel : b * strides.image;
  }
};

}  // namespace discloss
