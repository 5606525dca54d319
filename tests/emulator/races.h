// Finds accesses of two threads to the same memory, one of them a write, that nothing orders.
#pragma once

#include <cstddef>

namespace emulator {

// Whoever ran before this launch is ordered before it.
void forget_accesses();

// The same for memory whose use changes during a launch: shared memory begins and ends with its
// block, and the emulator's own data may lie there before and after.
void forget_accesses(const void* memory, std::size_t bytes);

}  // namespace emulator
