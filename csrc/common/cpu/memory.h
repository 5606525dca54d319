// Memory for slots and gradient. The first write to a page of 4 KB costs a page fault, and those of
// a gradient cost more than the loss itself.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace discloss::cpu {

// A hint to use pages of 2 MB, for new memory that nothing has been written to.
inline void prefer_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  (void)madvise(begin, bytes, MADV_HUGEPAGE);  // where the system cannot, nothing changes
#endif
}

// As torch's, but what one call has freed fits the next. Asked for aligned memory, the C library
// takes some bytes more than it gives back as one piece: the next gradient then does not fit where
// the last one was, the heap grows by new pages, and is cut off again a few calls later.
class CpuAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    // What the C library takes from the system and gives back to it: huge pages, in which nothing
    // else is ever kept. Aligned, or both ends would be in small ones.
    constexpr size_t kFromSystem = size_t{32} << 20;
    constexpr size_t kCacheLine = 64, kHugePage = size_t{2} << 20;
    const size_t alignment = bytes >= kFromSystem ? kHugePage : kCacheLine;
    void* memory = std::malloc(bytes + alignment);
    TORCH_CHECK_WITH(OutOfMemoryError, memory != nullptr,
                     "discloss_cuda: can't allocate memory: ", bytes, " bytes");
    c10::profiledCPUMemoryReporter().New(memory, bytes);
    const auto address = reinterpret_cast<uintptr_t>(memory);
    void* aligned = reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
    if (bytes >= kFromSystem) {
      prefer_huge_pages(aligned, bytes / kHugePage * kHugePage);
    }
    return {aligned, memory, &release, at::kCPU};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void release(void* memory) {
    c10::profiledCPUMemoryReporter().Delete(memory);
    std::free(memory);
  }
};

inline CpuAllocator* cpu_allocator() {
  static CpuAllocator allocator;
  return &allocator;
}

constexpr c10::DispatchKeySet kCpuKeys(c10::DispatchKey::CPU);

// As at::empty and at::empty_like, past the dispatcher.
inline at::Tensor new_tensor(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::detail::empty_generic(sizes, cpu_allocator(), kCpuKeys, dtype, std::nullopt);
}
inline at::Tensor new_tensor_like(const at::Tensor& tensor) {
  const auto strides = tensor.is_non_overlapping_and_dense()
                           ? tensor.strides().vec()
                           : at::infer_dense_strides(tensor.sizes(), tensor.strides());
  return at::detail::empty_strided_generic(tensor.sizes(), strides, cpu_allocator(), kCpuKeys,
                                           tensor.scalar_type());
}

}  // namespace discloss::cpu
