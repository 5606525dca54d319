#include "common/cuda/launching.cuh"
#include "common/cuda/offsets.h"
#include "common/cuda/portability.cuh"
#include "common/cuda/tuning.h"

namespace discloss::cuda {
namespace {

// A thread owns offsets[b], b <= images.
__global__ void __launch_bounds__(kRowThreads, 4)
    check_offsets_kernel(const int64_t* offsets, int64_t images, int64_t total) {
  follow_previous_kernel();
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b > images) {
    return;
  }
  device_assert(b > 0 || offsets[0] == 0, "discloss_cuda: offsets must begin with 0\n");
  device_assert(b == 0 || offsets[b - 1] <= offsets[b], "discloss_cuda: offsets must ascend\n");
  device_assert(b < images || offsets[b] == total,
                "discloss_cuda: offsets must end with the number of points\n");
}

// A thread owns the border before point i, i <= total: all images that begin there.
__global__ void __launch_bounds__(kRowThreads, 4)
    batch_offsets_kernel(const int64_t* batch, int64_t total, int64_t images, int64_t* offsets) {
  follow_previous_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i > total) {
    return;
  }
  const int64_t before = i == 0 ? -1 : batch[i - 1];
  const int64_t here = i == total ? images : batch[i];
  device_assert(before < images && here >= 0 && (i == total || here < images),
                "discloss_cuda: batch must hold indices from 0 to batch_size - 1\n");
  device_assert(before <= here, "discloss_cuda: batch must ascend\n");
  for (int64_t b = before + 1; b <= here; ++b) {
    offsets[b] = i;
  }
}

}  // namespace

cudaError_t launch_check_offsets(const int64_t* offsets, int64_t images, int64_t total,
                                 cudaStream_t stream) {
  return launch(check_offsets_kernel, {ceil_div(images + 1, kRowThreads), kRowThreads},
                Queue{stream}, offsets, images, total);
}

cudaError_t launch_batch_offsets(const int64_t* batch, int64_t total, int64_t images,
                                 int64_t* offsets, cudaStream_t stream) {
  return launch(batch_offsets_kernel, {ceil_div(total + 1, kRowThreads), kRowThreads},
                Queue{stream}, batch, total, images, offsets);
}

}  // namespace discloss::cuda
