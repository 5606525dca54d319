// The first write to a large new tensor costs a page fault for every 4 KB of it, together more than
// the loss itself; with pages of 2 MB they no longer count.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace discloss::cpu {

// A hint, for new memory that nothing has been written to. Only for sizes that the C library takes
// from the system and gives back to it, so that nothing else is ever kept in that memory.
inline void prefer_huge_pages([[maybe_unused]] const at::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  constexpr size_t kFromSystem = size_t{32} << 20;
  if (tensor.nbytes() >= kFromSystem) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (address + tensor.nbytes()) / kHugePage * kHugePage;
    // Where the system cannot, its answer changes nothing.
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

}  // namespace discloss::cpu
