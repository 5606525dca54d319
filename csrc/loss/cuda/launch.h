// The passes of the loss on a CUDA device, from raw pointers; torch-free. Everything is queued on
// the given stream: nothing waits for the device, allocates, or reads device memory on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "common/cuda/dtypes.h"
#include "common/strides.h"

namespace discloss::cuda {

// What every pass must know about a batch.
struct Batch {
  Images images;
  int64_t pixels;         // of all images
  int64_t channels;       // D
  int64_t max_instances;  // M
  Strides strides;        // of the embeddings
  ScalarType scalar;
  int norm;  // 1 or 2
};

// Ids whose pixels take part in nothing, on the host.
struct IgnoreLabels {
  const int64_t* ids;
  int64_t count;
};

// Pointers without a type are accscalar_t: float, or double for double embeddings.
struct ForwardArguments {
  Batch batch;
  const void* embeddings;
  Labels labels;
  IgnoreLabels ignore;
  double delta_var;
  double delta_dist;
  double alpha;
  double beta;
  double gamma;
  void* loss;            // [B]
  void* variance;        // [B]
  void* distance;        // [B]
  void* regularization;  // [B]
  int32_t* slots;        // [pixels]
  int64_t* instances;    // [B]
  int64_t* counts;       // [B, M]
  void* means;           // [B, M, D]
  void* pull;            // [B, M, D]
  void* push;            // [B, M, D]
};

// The upstream gradient of one result, [B] with a stride (0: the same for all); null counts as 0.
struct Upstream {
  const void* data;
  int64_t stride;
};

struct BackwardArguments {
  Batch batch;
  Upstream loss;
  Upstream variance;
  Upstream distance;
  Upstream regularization;
  const void* embeddings;
  const int32_t* slots;      // [pixels]
  const int64_t* instances;  // [B]
  const int64_t* counts;     // [B, M]
  const void* means;         // [B, M, D]
  const void* pull;          // [B, M, D]
  const void* push;          // [B, M, D]
  double delta_var;
  double alpha;
  double beta;
  double gamma;
  void* gradient;  // scalar_t
  Strides gradient_strides;
};

struct CountArguments {
  Images images;
  int64_t pixels;
  Labels labels;
  IgnoreLabels ignore;
  int64_t limit;   // counting stops beyond it
  int32_t* count;  // [B] instances of each image; anything > limit: more than limit
};

// Each launcher needs a workspace of the size its companion gives for the same arguments, aligned
// to 256 bytes.
cudaError_t forward_workspace(const ForwardArguments& arguments, size_t* bytes);
cudaError_t launch_forward(const ForwardArguments& arguments, void* workspace, cudaStream_t stream);

cudaError_t backward_workspace(const BackwardArguments& arguments, size_t* bytes);
cudaError_t launch_backward(const BackwardArguments& arguments, void* workspace,
                            cudaStream_t stream);

cudaError_t count_workspace(const CountArguments& arguments, size_t* bytes);
cudaError_t launch_count(const CountArguments& arguments, void* workspace, cudaStream_t stream);

}  // namespace discloss::cuda
