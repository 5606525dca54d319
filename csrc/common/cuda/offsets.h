// The offsets of a packed batch: checked, or found from the image index of each point. Queued on
// the stream; torch-free.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace discloss::cuda {

// Asserts on the device that offsets [images + 1] ascend from 0 to total.
cudaError_t launch_check_offsets(const int64_t* offsets, int64_t images, int64_t total,
                                 cudaStream_t stream);

// batch [total], ascending in [0, images), asserted -> offsets [images + 1]
cudaError_t launch_batch_offsets(const int64_t* batch, int64_t total, int64_t images,
                                 int64_t* offsets, cudaStream_t stream);

}  // namespace discloss::cuda
