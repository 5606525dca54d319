// The global memory that kernels may touch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ptx {

// An access to global memory outside of what is allowed is a fault.
void allow(const void* memory, std::size_t bytes);
void forbid(const void* memory);
bool may_touch(std::uintptr_t address, std::size_t bytes);

// Allowed until it is taken back, if it is not anyway.
void give(const void* memory, std::size_t bytes);
void take_back_given();

}  // namespace ptx
