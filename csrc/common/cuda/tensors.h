// From tensors to what launchers take, for the bindings of all ops. Only core headers of torch: it
// compiles against any build of it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <optional>

#include "common/cuda/dtypes.h"
#include "common/cuda/offsets.h"
#include "common/strides.h"

namespace discloss::cuda {

inline void check_launch(cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "discloss_cuda: CUDA error: ", cudaGetErrorString(error));
}

// An error while the stream is being captured into a graph, where no number can be read back.
inline void refuse_capture(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_launch(cudaStreamIsCapturing(stream, &status));
  check_launch(status == cudaStreamCaptureStatusNone ? cudaSuccess
                                                     : cudaErrorStreamCaptureUnsupported);
}

inline ScalarType scalar_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return ScalarType::kFloat64;
    case at::kHalf:
      return ScalarType::kFloat16;
    case at::kBFloat16:
      return ScalarType::kBFloat16;
    default:
      return ScalarType::kFloat32;
  }
}

inline LabelType label_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBool:
      return LabelType::kBool;
    case at::kChar:
      return LabelType::kInt8;
    case at::kShort:
      return LabelType::kInt16;
    case at::kInt:
      return LabelType::kInt32;
    case at::kByte:
      return LabelType::kUInt8;
    case at::kUInt16:
      return LabelType::kUInt16;
    default:
      return LabelType::kInt64;
  }
}

// labels [B, *spatial], or [N_total] with offsets. Both must outlive the results.
inline Labels labels_of(const at::Tensor& labels) {
  return {labels.const_data_ptr(), label_type(labels.scalar_type())};
}

inline Images images_of(const at::Tensor& labels, const std::optional<at::Tensor>& offsets) {
  if (offsets.has_value()) {
    return {offsets->numel() - 1, 0, offsets->const_data_ptr<int64_t>()};
  }
  const int64_t images = labels.size(0);
  return {images, images == 0 ? 0 : labels.numel() / images, nullptr};
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? std::optional<at::Tensor>(tensor->contiguous()) : std::nullopt;
}

inline void check_offsets_on_device(const std::optional<at::Tensor>& offsets, int64_t total,
                                    cudaStream_t stream) {
  if (offsets.has_value()) {
    check_launch(launch_check_offsets(offsets->const_data_ptr<int64_t>(), offsets->numel() - 1,
                                      total, stream));
  }
}

inline at::Tensor allocate_workspace(size_t bytes, const at::Tensor& like) {
  return at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
}

}  // namespace discloss::cuda
