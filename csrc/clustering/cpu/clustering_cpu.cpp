// The op `cluster` on a CPU (contract: clustering.h): checks, allocation, and one image after the
// other or side by side.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "clustering/check.h"
#include "clustering/clustering.h"
#include "common/cpu/batch.h"
#include "common/cpu/instruction_set.h"
#include "common/cpu/parts.h"
#include "components.h"
#include "rounds.h"

namespace discloss::cpu::clustering {
namespace {

const ClusterKernels& best_kernels() {
  switch (best_instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::kAvx512:
      return avx512::kClusterKernels;
    case InstructionSet::kAvx2:
      return avx2::kClusterKernels;
#endif
    default:
      return baseline::kClusterKernels;
  }
}

// Channel by channel of some pixels at a time, as they lie in memory.
template <typename scalar_t>
void gather_rows(const ImageView& image, const int64_t* pixels, int64_t count, float* rows) {
  constexpr int64_t kTogether = 256;
  const auto* embeddings = reinterpret_cast<const scalar_t*>(image.embeddings);
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t last = std::min(first + kTogether, count);
    for (int64_t c = 0; c < image.channels; ++c) {
      const scalar_t* channel = embeddings + c * image.channel_stride;
      for (int64_t i = first; i < last; ++i) {
        rows[i * image.channels + c] = static_cast<float>(channel[pixels[i] * image.pixel_stride]);
      }
    }
  }
}

ReadBlock* reader(const ClusterKernels& kernels, at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return kernels.read_double;
    case at::kHalf:
      return kernels.read_half;
    case at::kBFloat16:
      return kernels.read_bfloat16;
    default:
      return kernels.read_float;
  }
}

// The instances in the order of their first pixels.
struct Numbering {
  std::vector<int32_t> label;  // of each id, from the first
  std::vector<int64_t> count;  // of each label
};

// The first pixel from i on whose label is another than that of pixel i, or `pixels`.
int64_t end_of_run(const int32_t* labels, int64_t i, int64_t pixels) {
  const int32_t label = labels[i];
  int32_t differs = 0;
  while (i + kBlock <= pixels && differs == 0) {
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      differs |= labels[i + lane] ^ label;
    }
    i += differs == 0 ? kBlock : 0;
  }
  while (i < pixels && labels[i] == label) {
    ++i;
  }
  return i;
}

// Labels, 0 or 1 to `most`, become ids.
Numbering number_labels(int32_t* labels, int64_t pixels, size_t most) {
  Numbering numbering = {{}, std::vector<int64_t>(most + 1)};
  std::vector<int32_t> id(most + 1);
  for (int64_t i = 0; i < pixels;) {
    const auto label = static_cast<size_t>(labels[i]);
    const int64_t end = end_of_run(labels, i, pixels);
    if (label > 0 && id[label] == 0) {
      numbering.label.push_back(static_cast<int32_t>(label));
      id[label] = static_cast<int32_t>(numbering.label.size());
    }
    if (id[label] != static_cast<int32_t>(label)) {
      std::fill(labels + i, labels + end, id[label]);
    }
    numbering.count[label] += end - i;
    i = end;
  }
  return numbering;
}

// A call: its tensors, and what does not change from image to image.
class Batch {
 public:
  explicit Batch(const ClusterInputs& in)
      : view_(readable_view(in.embeddings.detach(), in.offsets.has_value())),
        offsets_(contiguous_offsets(in.offsets)),
        method_{best_kernels(), nullptr, in.options, Radii::of(in.options)} {
    if (in.foreground.has_value()) {
      foreground_ = in.foreground->contiguous();
    }
    if (in.modes.has_value()) {
      modes_ = in.modes->detach().to(at::kFloat).contiguous();
    }
    auto sizes = in.embeddings.sizes().vec();
    sizes.erase(sizes.begin() + 1);
    if (in.offsets.has_value()) {
      check_offset_values(offsets_.const_data_ptr<int64_t>(), offsets_.numel() - 1, sizes[0]);
    } else {
      grid_.sizes.assign(sizes.begin() + 1, sizes.end());
    }
    const auto make = [](at::IntArrayRef shape, at::ScalarType dtype) {
      return at::zeros(shape, dtype);
    };
    result_.ids = make(sizes, at::kInt);
    images_ = images_of(result_.ids, offsets_);
    const int64_t images = images_.count, rows = in.options.max_clusters;
    const int64_t channels = in.embeddings.size(1);
    result_.modes = make({images, rows, channels}, at::kFloat);
    result_.counts = make({images, rows}, at::kInt);
    result_.classes = make({images, rows}, at::kLong);
    result_.source = at::full({images, rows}, -1, at::kInt);
    result_.number = make({images}, at::kInt);
    result_.truncated = make({images}, at::kBool);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, in.embeddings.scalar_type(),
                                    "discloss_cuda::cluster",
                                    [&] { method_.gather = &gather_rows<scalar_t>; });
  }

  ClusterTuple run() const {
    for_each_image(images_, view_.tensor.size(1), [&](int64_t b, int64_t parts) {
      if (images_.size(b) > 0) {
        cluster_image(b, parts);
      }
    });
    return result_.as_tuple();
  }

 private:
  ImageView image_view(int64_t b, const Foreground& foreground) const {
    const at::Tensor& tensor = view_.tensor;
    const auto bytes = static_cast<int64_t>(tensor.element_size());
    const auto* data = static_cast<const char*>(tensor.const_data_ptr());
    int64_t last = 1;  // elements up to the last that may be read
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
      last += (tensor.size(axis) - 1) * tensor.stride(axis);
    }
    return {reader(method_.kernels, tensor.scalar_type()),
            data + images_.embedding(b, view_.strides) * bytes,
            data + last * bytes,
            bytes,
            view_.strides.channel,
            view_.strides.pixel,
            tensor.size(1),
            images_.size(b),
            grid_.sizes.size() > 1 ? grid_.width() : 0,
            foreground.classes.empty() ? nullptr : foreground.classes.data()};
  }

  Given given_modes(int64_t b) const {
    Given given;
    if (modes_.defined()) {
      const int64_t count = modes_.size(1), channels = modes_.size(2);
      const float* row = modes_.const_data_ptr<float>() + b * count * channels;
      for (int32_t g = 0; g < count; ++g, row += channels) {
        if (std::all_of(row, row + channels, [](float x) { return std::isfinite(x); })) {
          given.rows.insert(given.rows.end(), row, row + channels);
          given.source.push_back(g);
        }
      }
    }
    return given;
  }

  void cluster_image(int64_t b, int64_t parts) const {
    const int64_t pixels = images_.size(b);
    int32_t* labels = result_.ids.mutable_data_ptr<int32_t>() + images_.begin(b);
    Foreground foreground = image_foreground(foreground_, images_.begin(b), pixels, parts);
    const ImageView image = image_view(b, foreground);
    Found found = Rounds(method_, image, foreground, labels, parts).run(given_modes(b));
    const ClusterOptions& options = method_.options;
    std::vector<int32_t> rows(static_cast<size_t>(found.modes.count()));  // labels of modes
    std::iota(rows.begin(), rows.end(), 1);
    if ((options.fragment > 0 || options.connected) && !rows.empty()) {
      Components components(grid_, foreground.bits, labels);
      if (options.fragment > 0) {
        components.join_fragments(options.fragment);
        components.join_fragments(options.fragment);
      }
      if (options.connected) {
        rows.clear();
        found.truncated |= components.separate(options.min_size, options.max_clusters, rows);
      }
    }
    const Numbering numbering = number_labels(labels, pixels, rows.size());
    write_rows(b, found, rows, numbering, foreground.values);
  }

  void write_rows(int64_t b, const Found& found, const std::vector<int32_t>& rows,
                  const Numbering& numbering, const std::vector<int64_t>& classes) const {
    const int64_t first = b * method_.options.max_clusters, channels = found.modes.channels;
    float* modes = result_.modes.mutable_data_ptr<float>() + first * channels;
    int32_t* counts = result_.counts.mutable_data_ptr<int32_t>() + first;
    int64_t* values = result_.classes.mutable_data_ptr<int64_t>() + first;
    int32_t* source = result_.source.mutable_data_ptr<int32_t>() + first;
    for (const int32_t label : numbering.label) {
      const auto row = static_cast<size_t>(rows[static_cast<size_t>(label - 1)] - 1);
      modes = std::copy_n(found.modes.row(static_cast<int64_t>(row)), channels, modes);
      *counts++ = static_cast<int32_t>(numbering.count[static_cast<size_t>(label)]);
      *values++ = classes[static_cast<size_t>(found.modes.classes[row])];
      *source++ = found.source[row];
    }
    result_.number.mutable_data_ptr<int32_t>()[b] = static_cast<int32_t>(numbering.label.size());
    result_.truncated.mutable_data_ptr<bool>()[b] = found.truncated;
  }

  EmbeddingView view_;
  at::Tensor offsets_;
  at::Tensor foreground_;
  at::Tensor modes_;
  Grid grid_;
  Images images_{};
  Method method_;
  ClusterResult result_;
};

ClusterTuple cluster(const ClusterInputs& in) {
  check_cluster(in);
  return Batch(in).run();
}

}  // namespace
}  // namespace discloss::cpu::clustering

TORCH_LIBRARY_IMPL(discloss_cuda, CPU, library) {
  library.impl("cluster", TORCH_FN(discloss::flat_cluster<discloss::cpu::clustering::cluster>));
}
