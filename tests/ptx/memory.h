// The memory that kernels may touch, and what accesses to it are counted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ptx {

// An access to global memory outside of what is allowed is a fault.
void allow(const void* memory, std::size_t bytes);
void forbid(const void* memory);

// Allowed until it is taken back, if it is not anyway.
void give(const void* memory, std::size_t bytes);
void take_back_given();

// From now on sectors and wavefronts are counted, and the schedule is the plain one: no group of
// lanes is split that need not be.
void count_accesses(bool wanted);
bool counts_accesses();

}  // namespace ptx
