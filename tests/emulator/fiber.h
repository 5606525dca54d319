// Stacks of their own for the emulated CUDA threads, and the switch between them and the host.
//
// A fiber is always entered from the host (resume) and always left to the host (suspend): the
// scheduler is one loop in one place.
#pragma once

namespace emulator {

struct Fiber;

// A fiber from the pool that runs `entry` when it is first resumed. `entry` must never return: its
// last act is suspend().
Fiber* take_fiber(void (*entry)());

// Puts the fiber back into the pool. It may be in the middle of its work: what is on its stack is
// forgotten, and no destructor runs.
void give_back_fiber(Fiber* fiber);

void resume(Fiber* fiber);  // called on the host; comes back when the fiber suspends
void suspend();             // called on the fiber that runs; comes back when it is resumed

// Whether an address is of the running fiber's own stack.
bool is_on_running_fiber(const void* address);

}  // namespace emulator
