// The dtypes of embeddings and labels, for code without torch.
#pragma once

namespace discloss::cuda {

enum class ScalarType { kFloat32, kFloat64, kFloat16, kBFloat16 };
enum class LabelType { kBool, kInt8, kInt16, kInt32, kInt64, kUInt8, kUInt16 };

struct Labels {
  const void* data;  // [pixels of all images]
  LabelType type;
};

}  // namespace discloss::cuda
