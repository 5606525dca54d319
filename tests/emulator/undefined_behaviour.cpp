// Undefined behaviour in a kernel ends its launch with a message, not the process.
#include <signal.h>

#include "device.h"

// --- checks of the compiler ----------------------------------------------------------------------
//
// The kernels are compiled with them (build.py: CHECKED). Their reports come here and not to the
// compiler's own runtime library, which knows nothing of fibers and would end the process.

namespace {

// Every report begins with one.
struct Place {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
};

struct TypeMismatch {
  Place place;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

void report(const Place& place, const char* what) {
  if (emulator::in_kernel()) {
    emulator::fail({place.file, place.line}, "%s", what);
  }
  emulator::break_device(std::string(place.file) + ":" + std::to_string(place.line) + ": " + what);
}

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* at, const void* pointer) {
  if (pointer == nullptr) {
    report(at->place, "access through a null pointer");
    return;
  }
  char text[96];
  std::snprintf(text, sizeof text, "address %p is not aligned to %d bytes", pointer,
                1 << at->log_alignment);
  report(at->place, text);
}

void __ubsan_handle_out_of_bounds(const Place* at) { report(*at, "index outside the array"); }
void __ubsan_handle_shift_out_of_bounds(const Place* at) { report(*at, "shift out of range"); }
void __ubsan_handle_add_overflow(const Place* at) { report(*at, "signed overflow in +"); }
void __ubsan_handle_sub_overflow(const Place* at) { report(*at, "signed overflow in -"); }
void __ubsan_handle_mul_overflow(const Place* at) { report(*at, "signed overflow in *"); }
void __ubsan_handle_negate_overflow(const Place* at) { report(*at, "signed overflow in unary -"); }
void __ubsan_handle_divrem_overflow(const Place* at) { report(*at, "division by 0 or overflow"); }

}  // extern "C"

// --- faults of the processor ---------------------------------------------------------------------

namespace emulator {
namespace {

void on_fault(int signal_number, siginfo_t* information, void*) {
  if (!in_kernel()) {
    signal(signal_number, SIG_DFL);  // not a kernel's mistake: the access is repeated and fatal
    return;
  }
  fail({}, "illegal memory access, address %p", information->si_addr);
}

}  // namespace

FaultGuard::FaultGuard() : stack_(64 * 1024) {
  // A stack of its own, because the fault may be the overflow of a fiber's.
  stack_t alternative = {};
  alternative.ss_sp = stack_.data();
  alternative.ss_size = stack_.size();
  sigaltstack(&alternative, &old_stack_);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left by a switch
  sigaction(SIGSEGV, &action, &old_segv_);
  sigaction(SIGBUS, &action, &old_bus_);
}

FaultGuard::~FaultGuard() {
  sigaction(SIGSEGV, &old_segv_, nullptr);
  sigaction(SIGBUS, &old_bus_, nullptr);
  sigaltstack(&old_stack_, nullptr);
}

}  // namespace emulator
