// The one thing a CUDA call needs from torch that a CPU tensor has not.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cuda_runtime.h>

namespace discloss::cuda {

// Through c10's device-independent interface: no CUDA header of torch, hence no CUDA build of
// torch, is needed to compile.
inline cudaStream_t current_stream(const at::Device& device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return static_cast<cudaStream_t>(guard.getStream(device).native_handle());
}

}  // namespace discloss::cuda
