// The ops on a CPU (contract: discriminative_loss.h): checks, allocation, and one image after the
// other or side by side.
#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "backward.h"
#include "common/cpu/batch.h"
#include "common/cpu/memory.h"
#include "common/cpu/parts.h"
#include "common/layout.h"
#include "forward.h"
#include "ids.h"
#include "loss/check_arguments.h"
#include "loss/discriminative_loss.h"

namespace discloss::cpu {
namespace {

// Calls body(label_t{}) with the C++ type of the labels.
template <typename Body>
auto dispatch_labels(const at::Tensor& labels, const Body& body) {
  switch (labels.scalar_type()) {
    case at::kBool:
      return body(bool{});
    case at::kChar:
      return body(int8_t{});
    case at::kByte:
      return body(uint8_t{});
    case at::kShort:
      return body(int16_t{});
    case at::kUInt16:
      return body(uint16_t{});
    case at::kInt:
      return body(int32_t{});
    default:
      return body(int64_t{});
  }
}

// The ids of image b. slots: of the batch, or null.
ImageIds image_ids(const at::Tensor& labels, const Images& images, int64_t b, int64_t parts,
                   at::IntArrayRef ignore_labels, int32_t* slots) {
  const int64_t first = images.begin(b);
  return dispatch_labels(labels, [&](auto label) {
    return number_ids(labels.const_data_ptr<decltype(label)>() + first, images.size(b), parts,
                      ignore_labels, slots == nullptr ? nullptr : slots + first);
  });
}

void check_offsets_of(const at::Tensor& offsets, const at::Tensor& labels) {
  if (offsets.defined()) {
    check_offset_values(offsets.const_data_ptr<int64_t>(), offsets.numel() - 1, labels.numel());
  }
}

void check_instances(const at::Tensor& instances, int64_t max_instances) {
  const int64_t* counts = instances.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < instances.numel(); ++b) {
    TORCH_CHECK_VALUE(counts[b] <= max_instances, "max_instances: expected at most ", max_instances,
                      " instances in an image, got ", counts[b], " in image ", b);
  }
}

template <typename accscalar_t>
ImageResult<accscalar_t> image_result(ForwardResult& result, int64_t b, int64_t first_pixel) {
  const int64_t first = b * result.counts.size(1);
  const int64_t channels = result.means.size(2);
  return {result.slots.mutable_data_ptr<int32_t>() + first_pixel,
          result.loss.mutable_data_ptr<accscalar_t>() + b,
          result.variance.mutable_data_ptr<accscalar_t>() + b,
          result.distance.mutable_data_ptr<accscalar_t>() + b,
          result.regularization.mutable_data_ptr<accscalar_t>() + b,
          result.counts.mutable_data_ptr<int64_t>() + first,
          result.means.mutable_data_ptr<accscalar_t>() + first * channels,
          result.pull.mutable_data_ptr<accscalar_t>() + first * channels,
          result.push.mutable_data_ptr<accscalar_t>() + first * channels};
}

template <typename scalar_t>
void forward_batch(const ForwardInputs& in, const EmbeddingView& view, const at::Tensor& labels,
                   const Images& images, ForwardResult& result) {
  const BatchPixels<scalar_t> batch(view, images, result.slots);
  int32_t* slots = result.slots.mutable_data_ptr<int32_t>();
  int64_t* instances = result.instances.mutable_data_ptr<int64_t>();
  for_each_image(images, batch.channels, [&](int64_t b, int64_t parts) {
    const ImageIds ids = image_ids(labels, images, b, parts, in.ignore_labels, slots);
    instances[b] = ids.instances;
    if (ids.instances <= in.max_instances.expect_int()) {
      const auto image = image_result<accumulate_t<scalar_t>>(result, b, images.begin(b));
      ImageForward<scalar_t>(batch, in.parameters, b, parts, ids, image).run();
    }
  });
}

ForwardTuple forward(const ForwardInputs& in) {
  check_forward(in);
  const at::Tensor bounds = contiguous_offsets(in.offsets);
  check_offsets_of(bounds, in.labels);
  const Images images = images_of(in.labels, bounds);
  const int64_t max_instances = in.max_instances.expect_int();
  // Past the dispatcher, which takes longer than a small image's passes.
  const auto zeros = [](at::IntArrayRef sizes, const at::TensorOptions& options) {
    at::Tensor tensor = at::detail::empty_cpu(sizes, options);
    std::fill_n(static_cast<char*>(tensor.mutable_data_ptr()), tensor.nbytes(), 0);
    return tensor;
  };
  const at::Tensor slots = new_tensor(in.labels.sizes(), at::kInt);
  ForwardResult result =
      ForwardResult::allocate(in.embeddings, slots, images.count, max_instances, in.squeeze, zeros);
  const EmbeddingView view = readable_view(in.embeddings, in.offsets.has_value());
  const at::Tensor ids = in.labels.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, in.embeddings.scalar_type(),
                                  "discloss_cuda::forward",
                                  [&] { forward_batch<scalar_t>(in, view, ids, images, result); });
  check_instances(result.instances, max_instances);
  return std::move(result).as_tuple();
}

// Upstream gradients of image b into the weights of its terms.
template <typename accscalar_t>
Weights upstream_weights(const BackwardInputs& in, int64_t b) {
  const auto value = [b](const std::optional<at::Tensor>& gradient) -> double {
    return gradient.has_value()
               ? gradient->const_data_ptr<accscalar_t>()[b * image_stride(*gradient)]
               : 0.0;
  };
  const double loss = value(in.grad_loss);
  return {in.parameters.alpha * loss + value(in.grad_variance),
          in.parameters.beta * loss + value(in.grad_distance),
          in.parameters.gamma * loss + value(in.grad_regularization)};
}

at::Tensor backward(const BackwardInputs& in) {
  check_backward(in);
  const at::Tensor bounds = contiguous_offsets(in.offsets);
  const Images images = images_of(in.slots, bounds);
  const EmbeddingView view = readable_view(in.embeddings, in.offsets.has_value());
  const GradientBuffer buffer =
      gradient_buffer(new_tensor_like(in.embeddings), in.offsets.has_value());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, in.embeddings.scalar_type(), "discloss_cuda::backward", [&] {
        using accscalar_t = accumulate_t<scalar_t>;
        const BatchPixels<scalar_t> batch(view, images, in.slots);
        const Strides& strides = buffer.view.strides;
        auto* gradient = buffer.view.tensor.mutable_data_ptr<scalar_t>();
        for_each_image(images, batch.channels, [&](int64_t b, int64_t parts) {
          const int64_t first = b * in.counts.size(1);
          const int64_t table = first * batch.channels;
          const SavedImage<accscalar_t> saved = {in.instances.const_data_ptr<int64_t>()[b],
                                                 in.counts.const_data_ptr<int64_t>() + first,
                                                 in.means.const_data_ptr<accscalar_t>() + table,
                                                 in.pull.const_data_ptr<accscalar_t>() + table,
                                                 in.push.const_data_ptr<accscalar_t>() + table,
                                                 upstream_weights<accscalar_t>(in, b)};
          const GradientPixels<scalar_t> out = {gradient + images.embedding(b, strides),
                                                strides.channel, strides.pixel};
          image_backward(batch, b, parts, saved, in.parameters, out);
        });
      });
  return buffer.finish();
}

c10::SymInt count_instances(const at::Tensor& labels, const std::optional<at::Tensor>& offsets,
                            at::IntArrayRef ignore_labels) {
  check_labels(labels, offsets);
  const at::Tensor bounds = contiguous_offsets(offsets);
  check_offsets_of(bounds, labels);
  const Images images = images_of(labels, bounds);
  const at::Tensor ids = labels.contiguous();
  std::vector<int64_t> counts(static_cast<size_t>(images.count));
  // To number the id of a pixel takes about as long as four of its channels do in the passes.
  for_each_image(images, 4, [&](int64_t b, int64_t parts) {
    counts[static_cast<size_t>(b)] =
        image_ids(ids, images, b, parts, ignore_labels, nullptr).instances;
  });
  return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
}

at::Tensor batch_offsets(const at::Tensor& batch, int64_t batch_size) {
  check_batch(batch, batch_size);
  const at::Tensor sorted = batch.contiguous();
  const int64_t* image = sorted.const_data_ptr<int64_t>();
  const int64_t total = sorted.numel();
  const at::Tensor result = at::empty({batch_size + 1}, batch.options());
  int64_t* offsets = result.mutable_data_ptr<int64_t>();
  int64_t next = 0;  // the first image whose offset is not known
  for (int64_t i = 0; i < total; ++i) {
    TORCH_CHECK_VALUE(image[i] >= 0 && image[i] < batch_size,
                      "batch: expected image numbers from 0 to batch_size - 1 = ", batch_size - 1,
                      ", got ", image[i], " at ", i);
    TORCH_CHECK_VALUE(i == 0 || image[i] >= image[i - 1],
                      "batch: expected ascending image numbers, got ", image[i], " after ",
                      image[i - 1], " at ", i);
    while (next <= image[i]) {
      offsets[next++] = i;
    }
  }
  while (next <= batch_size) {
    offsets[next++] = total;
  }
  return result;
}

}  // namespace
}  // namespace discloss::cpu

TORCH_LIBRARY_IMPL(discloss_cuda, CPU, library) {
  library.impl("forward", TORCH_FN(discloss::flat_forward<discloss::cpu::forward>));
  library.impl("backward", TORCH_FN(discloss::flat_backward<discloss::cpu::backward>));
  library.impl("count_instances", TORCH_FN(discloss::cpu::count_instances));
  library.impl("batch_offsets", TORCH_FN(discloss::cpu::batch_offsets));
}
