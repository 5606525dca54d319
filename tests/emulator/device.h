// What the emulated device is made of, for device.cpp (which runs the kernels) and runtime.cpp
// (which stands in for libcudart).
#pragma once

#include <signal.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

inline constexpr unsigned kMaxThreadsPerBlock = 1024;
inline constexpr unsigned kMaxBlocksPerCluster = 8;
inline constexpr int kFirstWithClusters = 9;  // compute capability
inline constexpr std::size_t kSharedMemoryWithoutAttribute = 48 * 1024;
inline constexpr std::size_t kReservedMemory = 1024;   // of the shared memory, for each block
inline constexpr unsigned char kUninitialised = 0xFF;  // fills shared memory: NaN, -1

// Chosen by the tests.
struct Settings {
  int compute_capability = 9;
  int multiprocessors = 4;
  int resident_blocks = 4;  // blocks that are under way at the same time
  std::uint64_t seed = 0;   // of the order in which blocks and threads run
  std::size_t shared_memory_per_block = 227 * 1024;
  bool find_races = true;
};

struct Device {
  std::mutex mutex;  // one launch at a time, from whichever Python thread
  Settings settings;
  std::uint64_t launches = 0;  // since the settings were made
  bool broken = false;         // by a failed kernel: as on a device, every later call fails too
  std::string message;         // about the last error
};
extern Device device;

bool in_kernel();  // and not in the host's code

// When the running thread does what it does, for the order of its accesses to those of others.
struct Moment {
  std::uint32_t thread = 0;    // of the grid; those of a block begin at a multiple of the maximum
  std::uint32_t barriers = 0;  // that its block has passed
  std::uint32_t cluster = 0;   // of the grid, and the barriers that it has passed
  std::uint32_t cluster_barriers = 0;
  std::uint32_t clock = 0;  // greater after a warp operation than before, for all who took part
};
Moment current_moment();

// While it lives, an access to an address that is not mapped fails the kernel that makes it.
class FaultGuard {
 public:
  FaultGuard();
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

 private:
  std::vector<unsigned char> stack_;
  stack_t old_stack_{};
  struct sigaction old_segv_{};
  struct sigaction old_bus_{};
};

// The device is broken from now on.
void break_device(const std::string& message);

struct KernelCall {
  dim3 grid;
  dim3 block;
  unsigned cluster;  // blocks
  std::size_t shared_bytes;
  void (*invoke)(const void* arguments);
  const void* arguments;
};

// Runs every thread of a grid whose shape is legal. The device is broken afterwards if something
// was wrong.
void run_grid(const KernelCall& call);

}  // namespace emulator
