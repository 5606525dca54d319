// The ops for CUDA tensors: checks, allocation, the call of a launcher. No device code, and only
// core headers of torch, so that it compiles against any build of it.
#include <ATen/ops/empty.h>
#include <ATen/ops/max.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "common/cuda/current_stream.h"
#include "common/cuda/offsets.h"
#include "common/cuda/tensors.h"
#include "common/layout.h"
#include "launch.h"
#include "loss/check_arguments.h"
#include "loss/discriminative_loss.h"

namespace discloss::cuda {
namespace {

Batch batch_of(const EmbeddingView& view, const at::Tensor& labels,
               const std::optional<at::Tensor>& offsets, int64_t max_instances, int64_t norm) {
  return {images_of(labels, offsets),
          labels.numel(),
          view.tensor.size(1),
          max_instances,
          view.strides,
          scalar_type(view.tensor.scalar_type()),
          static_cast<int>(norm)};
}

ForwardTuple forward(const ForwardInputs& in) {
  check_forward(in);
  const Parameters& p = in.parameters;
  const int64_t max_instances = in.max_instances.expect_int();
  const c10::DeviceGuard guard(in.embeddings.device());
  const auto stream = current_stream(in.embeddings.device());
  const EmbeddingView view = readable_view(in.embeddings, in.offsets.has_value());
  const at::Tensor ids = in.labels.contiguous();
  const auto bounds = contiguous(in.offsets);
  check_offsets_on_device(bounds, in.labels.numel(), stream);
  const Batch batch = batch_of(view, ids, bounds, max_instances, p.norm);
  const auto empty = [](at::IntArrayRef sizes, const at::TensorOptions& options) {
    return at::empty(sizes, options);
  };
  const at::Tensor slots = empty(in.labels.sizes(), in.embeddings.options().dtype(at::kInt));
  const ForwardResult r = ForwardResult::allocate(in.embeddings, slots, batch.images.count,
                                                  max_instances, in.squeeze, empty);
  const ForwardArguments arguments = {
      batch,
      view.tensor.const_data_ptr(),
      labels_of(ids),
      {in.ignore_labels.data(), static_cast<int64_t>(in.ignore_labels.size())},
      p.delta_var,
      p.delta_dist,
      p.alpha,
      p.beta,
      p.gamma,
      r.loss.mutable_data_ptr(),
      r.variance.mutable_data_ptr(),
      r.distance.mutable_data_ptr(),
      r.regularization.mutable_data_ptr(),
      r.slots.mutable_data_ptr<int32_t>(),
      r.instances.mutable_data_ptr<int64_t>(),
      r.counts.mutable_data_ptr<int64_t>(),
      r.means.mutable_data_ptr(),
      r.pull.mutable_data_ptr(),
      r.push.mutable_data_ptr()};
  size_t bytes = 0;
  check_launch(forward_workspace(arguments, &bytes));
  const at::Tensor workspace = allocate_workspace(bytes, in.embeddings);
  check_launch(launch_forward(arguments, workspace.mutable_data_ptr(), stream));
  return r.as_tuple();
}

Upstream upstream(const std::optional<at::Tensor>& gradient) {
  if (!gradient.has_value()) {
    return {nullptr, 0};
  }
  return {gradient->const_data_ptr(), image_stride(*gradient)};
}

at::Tensor backward(const BackwardInputs& in) {
  check_backward(in);
  const Parameters& p = in.parameters;
  const c10::DeviceGuard guard(in.embeddings.device());
  const EmbeddingView view = readable_view(in.embeddings, in.offsets.has_value());
  const GradientBuffer gradient =
      gradient_buffer(at::empty_like(in.embeddings), in.offsets.has_value());
  const auto bounds = contiguous(in.offsets);
  const BackwardArguments arguments = {batch_of(view, in.slots, bounds, in.counts.size(1), p.norm),
                                       upstream(in.grad_loss),
                                       upstream(in.grad_variance),
                                       upstream(in.grad_distance),
                                       upstream(in.grad_regularization),
                                       view.tensor.const_data_ptr(),
                                       in.slots.const_data_ptr<int32_t>(),
                                       in.instances.const_data_ptr<int64_t>(),
                                       in.counts.const_data_ptr<int64_t>(),
                                       in.means.const_data_ptr(),
                                       in.pull.const_data_ptr(),
                                       in.push.const_data_ptr(),
                                       p.delta_var,
                                       p.alpha,
                                       p.beta,
                                       p.gamma,
                                       gradient.view.tensor.mutable_data_ptr(),
                                       gradient.view.strides};
  size_t bytes = 0;
  check_launch(backward_workspace(arguments, &bytes));
  const at::Tensor workspace = allocate_workspace(bytes, in.embeddings);
  check_launch(launch_backward(arguments, workspace.mutable_data_ptr(),
                               current_stream(in.embeddings.device())));
  return gradient.finish();
}

// Counts up to a limit that is nearly always enough, and up to a larger one where it is not: each
// round reads one number back to the host.
c10::SymInt count_instances(const at::Tensor& labels, const std::optional<at::Tensor>& offsets,
                            at::IntArrayRef ignore_labels) {
  check_labels(labels, offsets);
  const c10::DeviceGuard guard(labels.device());
  const auto stream = current_stream(labels.device());
  refuse_capture(stream);
  const at::Tensor ids = labels.contiguous();
  const auto bounds = contiguous(offsets);
  check_offsets_on_device(bounds, labels.numel(), stream);
  const Images images = images_of(ids, bounds);
  if (images.count == 0) {
    return 0;
  }
  const at::Tensor count = at::empty({images.count}, labels.options().dtype(at::kInt));
  for (int64_t limit = 2048;; limit *= 16) {
    const CountArguments arguments = {
        images,         labels.numel(),
        labels_of(ids), {ignore_labels.data(), static_cast<int64_t>(ignore_labels.size())},
        limit,          count.mutable_data_ptr<int32_t>()};
    size_t bytes = 0;
    check_launch(count_workspace(arguments, &bytes));
    const at::Tensor workspace = allocate_workspace(bytes, labels);
    check_launch(launch_count(arguments, workspace.mutable_data_ptr(), stream));
    const int64_t most = at::max(count).item<int64_t>();
    if (most <= limit) {
      return most;
    }
  }
}

at::Tensor batch_offsets(const at::Tensor& batch, int64_t batch_size) {
  check_batch(batch, batch_size);
  const c10::DeviceGuard guard(batch.device());
  const at::Tensor indices = batch.contiguous();
  const at::Tensor offsets = at::empty({batch_size + 1}, batch.options());
  check_launch(launch_batch_offsets(indices.const_data_ptr<int64_t>(), batch.numel(), batch_size,
                                    offsets.mutable_data_ptr<int64_t>(),
                                    current_stream(batch.device())));
  return offsets;
}

}  // namespace

TORCH_LIBRARY_IMPL(discloss_cuda, CUDA, library) {
  library.impl("forward", TORCH_FN(flat_forward<forward>));
  library.impl("backward", TORCH_FN(flat_backward<backward>));
  library.impl("count_instances", count_instances);
  library.impl("batch_offsets", batch_offsets);
}

}  // namespace discloss::cuda
