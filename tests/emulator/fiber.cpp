#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

// Saves the callee-saved registers on the running stack and its top in *save, then does the reverse
// with `to`. 30 times faster than swapcontext, which makes a system call for the signal mask.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch_stack(void** save, void* to);
asm(R"(
.text
.hidden emulator_switch_stack
.globl emulator_switch_stack
.type emulator_switch_stack,@function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack,.-emulator_switch_stack
)");

namespace {

struct Context {
  void* top = nullptr;
};

void prepare(Context& context, unsigned char* stack, std::size_t bytes, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  auto** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // `entry` expects a return address above an aligned frame
  *--top = reinterpret_cast<void*>(entry);  // the switch returns to here
  for (int i = 0; i < kSavedRegisters; ++i) {
    *--top = nullptr;
  }
  context.top = top;
}

void switch_context(Context& from, const Context& to) { emulator_switch_stack(&from.top, to.top); }

}  // namespace

#else

#include <ucontext.h>

namespace {

struct Context {
  ucontext_t registers{};
};

void prepare(Context& context, unsigned char* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

void switch_context(Context& from, const Context& to) {
  swapcontext(&from.registers, &to.registers);
}

}  // namespace

#endif

namespace emulator {

struct Fiber {
  unsigned char* stack = nullptr;
  std::size_t bytes = 0;
  Context context;
};

namespace {

constexpr std::size_t kStackBytes = 64 * 1024;

Context host;
Fiber* running = nullptr;
std::vector<Fiber*> pool;

Fiber* make_fiber() {
  const auto guard = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("emulator: no memory for a stack");
    std::abort();
  }
  mprotect(memory, guard,
           PROT_NONE);  // a stack that grows too large faults, it does not overwrite its neighbour
  auto* fiber = new Fiber;
  fiber->stack = static_cast<unsigned char*>(memory) + guard;
  // The tops of all stacks at the same offset in their pages would compete for the same few cache
  // lines.
  static std::size_t made = 0;
  fiber->bytes = kStackBytes - 320 * made++ % 4096;
  return fiber;
}

}  // namespace

Fiber* take_fiber(void (*entry)()) {
  if (pool.empty()) {
    pool.push_back(make_fiber());
  }
  Fiber* fiber = pool.back();
  pool.pop_back();
  prepare(fiber->context, fiber->stack, fiber->bytes, entry);
  return fiber;
}

void give_back_fiber(Fiber* fiber) { pool.push_back(fiber); }

void resume(Fiber* fiber) {
  running = fiber;
  switch_context(host, fiber->context);
  running = nullptr;
}

void suspend() { switch_context(running->context, host); }

bool is_on_running_fiber(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  return running != nullptr && byte >= running->stack && byte < running->stack + running->bytes;
}

}  // namespace emulator
