// The checks of tensors that every op on labels, embeddings or packed batches needs. Each message
// names the argument, what was expected and what came: TypeError for dtypes, ValueError for the
// rest.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>

namespace discloss {

inline void check_embeddings_dtype(const at::Tensor& embeddings) {
  const auto dtype = embeddings.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      "embeddings: expected a tensor of dtype float32, float64, float16 or bfloat16, "
      "got ",
      dtype);
}

inline void check_labels_dtype(const at::Tensor& labels) {
  const auto dtype = labels.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kBool || dtype == at::kChar || dtype == at::kShort ||
                       dtype == at::kInt || dtype == at::kLong || dtype == at::kByte ||
                       dtype == at::kUInt16,
                   "labels: expected a tensor of dtype bool, int8, int16, int32, int64, uint8 or "
                   "uint16, got ",
                   dtype, at::isComplexType(dtype) ? "" : ": labels.long() makes ids of it");
}

inline void check_same_device(const char* name, const at::Tensor& tensor, const char* other_name,
                              const at::Tensor& other) {
  TORCH_CHECK_VALUE(tensor.device() == other.device(), name, ": expected the device of ",
                    other_name, ", ", other.device(), ", got ", tensor.device());
}

inline void check_int64_vector(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kLong, name,
                   ": expected a tensor of dtype int64, got ", tensor.scalar_type(), ": ", name,
                   ".long() converts it");
  TORCH_CHECK_VALUE(tensor.dim() == 1, name, ": expected one axis, got shape ", tensor.sizes());
}

// offsets is a vector of at least one element on the labels' device, labels are [N_total].
inline void check_packed_labels(const at::Tensor& labels, const at::Tensor& offsets) {
  check_int64_vector("offsets", offsets);
  TORCH_CHECK_VALUE(offsets.numel() >= 1, "offsets: expected shape [B + 1], got ", offsets.sizes());
  check_same_device("offsets", offsets, "labels", labels);
  TORCH_CHECK_VALUE(labels.dim() == 1, "labels: expected shape [N_total] with offsets, got ",
                    labels.sizes());
}

inline void check_labels(const at::Tensor& labels, const std::optional<at::Tensor>& offsets) {
  check_labels_dtype(labels);
  if (offsets.has_value()) {
    check_packed_labels(labels, *offsets);
  } else {
    TORCH_CHECK_VALUE(labels.dim() >= 2, "labels: expected shape [B, *spatial], got ",
                      labels.sizes());
  }
}

inline void check_dense_shapes(const at::Tensor& embeddings, const at::Tensor& labels) {
  TORCH_CHECK_VALUE(embeddings.dim() >= 3,
                    "embeddings: expected shape [B, D, *spatial] with at least one spatial axis, "
                    "got ",
                    embeddings.sizes());
  auto expected = embeddings.sizes().vec();
  expected.erase(expected.begin() + 1);
  TORCH_CHECK_VALUE(labels.sizes() == at::IntArrayRef(expected),
                    "labels: expected shape [B, *spatial] = ", at::IntArrayRef(expected),
                    " for embeddings of shape ", embeddings.sizes(), ", got ", labels.sizes());
}

inline void check_packed_shapes(const at::Tensor& embeddings, const at::Tensor& labels) {
  TORCH_CHECK_VALUE(embeddings.dim() == 2,
                    "embeddings: expected shape [N_total, D] with offsets, got ",
                    embeddings.sizes());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == embeddings.size(0),
                    "labels: expected shape [N_total] = [", embeddings.size(0),
                    "] for embeddings of shape ", embeddings.sizes(), ", got ", labels.sizes());
}

// offsets on the host: ascending from 0 to N_total. On a CUDA device a kernel asserts the same.
inline void check_offset_values(const int64_t* offsets, int64_t images, int64_t total) {
  TORCH_CHECK_VALUE(
      offsets[0] == 0, "offsets: expected offsets[0] = 0, got ", offsets[0],
      ": torch.nn.functional.pad(offsets, (1, 0)) makes offsets of the ends of clouds");
  for (int64_t b = 0; b < images; ++b) {
    TORCH_CHECK_VALUE(offsets[b] <= offsets[b + 1], "offsets: expected ascending values, got ",
                      offsets[b], " before ", offsets[b + 1], " at ", b);
  }
  TORCH_CHECK_VALUE(offsets[images] == total, "offsets: expected offsets[B] = N_total = ", total,
                    ", got ", offsets[images]);
}

inline void check_batch(const at::Tensor& batch, int64_t batch_size) {
  check_int64_vector("batch", batch);
  TORCH_CHECK_VALUE(batch_size >= 0, "batch_size: expected a number >= 0, got ", batch_size);
}

}  // namespace discloss
