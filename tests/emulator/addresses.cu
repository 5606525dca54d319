// Where tiles lie in tensors of any size: the kernels' own arithmetic, called from the host without
// the memory. Offsets are in elements.
#include "common/cuda/ranges.cuh"
#include "common/cuda/tile.cuh"

namespace discloss::cuda {
namespace {

std::int64_t offset_of(const float* pointer) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(pointer) / sizeof(float));
}

}  // namespace
}  // namespace discloss::cuda

#define ADDRESSES extern "C" __attribute__((visibility("default")))

// Of a channel at the first pixel of a tile of a dense batch.
ADDRESSES std::int64_t tile_offset(std::int64_t image, std::int64_t tile, std::int64_t channel,
                                   std::int64_t pixels, std::int64_t image_stride,
                                   std::int64_t channel_stride, std::int64_t pixel_stride) {
  using namespace discloss;
  constexpr int kTilePixels = 512;
  const Images images = {image + 1, pixels, nullptr};
  const cuda::Global<const float*> global = {
      nullptr, {image_stride, channel_stride, pixel_stride}, false};
  return cuda::offset_of(
      cuda::tile_source(global, images, {image, tile * kTilePixels, kTilePixels, channel, 1})
          .first);
}

// Of the last vector of a tile: the last channel of the last pixel.
ADDRESSES std::int64_t last_offset(std::int64_t channels, std::int64_t channel_stride,
                                   std::int64_t pixel_stride) {
  using namespace discloss;
  const cuda::TileSource<const float*> source = {
      nullptr, {0, channel_stride, pixel_stride}, false, static_cast<int>(channels), 512};
  std::int64_t last = 0;
  threadIdx.x = 0;
  blockDim.x = 1;
  cuda::visit_vectors<4>(source, [&](int channel, int pixel, int) {
    const Strides& s = source.strides;
    last = std::max(last, channel * s.channel + pixel * s.pixel);
  });
  return last;
}

// The first pixel, of its image, that the last block visits, and the number of that image.
ADDRESSES std::int64_t first_pixel_of_last_block(std::int64_t images, std::int64_t pixels,
                                                 std::int64_t range, std::int64_t* image) {
  using namespace discloss;
  const std::int64_t total = images * pixels;
  const cuda::BlockRanges ranges = {(total + range - 1) / range, range, total};
  blockIdx.x = static_cast<unsigned>(ranges.blocks - 1);
  std::int64_t first = -1;
  cuda::for_each_image({images, pixels, nullptr}, ranges, [&](const cuda::ImageRange& visited) {
    cuda::for_each_tile(visited, 512, [&](std::int64_t begin, int) {
      if (first < 0) {
        first = begin;
        *image = visited.image;
      }
    });
  });
  return first;
}
