// A kernel as the interpreter holds it, and the state of the threads that run it.
//
// A register is 64 bits for each lane of a warp, whatever its type: narrower values lie in the low
// bits. Constants and special registers are registers that are filled when a warp starts.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "shared_memory.h"

namespace ptx {

inline constexpr unsigned kWarpSize = 32;
using Mask = std::uint32_t;  // of lanes
using Bits = std::uint64_t;  // of a register

// What a kernel does wrong, or the interpreter does not know.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Instruction;
struct Warp;
using Execute = void (*)(Warp&, const Instruction&, Mask);

enum class Kind : std::uint8_t {
  kPlain,
  kBranch,
  kExit,
  kTrap,
  kBarrier,
  kClusterArrive,
  kClusterWait,
  kMeeting  // of the lanes that a mask names: shuffle, vote, barrier of a warp
};

// Of all launches of an instruction. A sector is 32 bytes of global memory, a wavefront what shared
// memory serves at once: 128 bytes, each bank one word.
struct Counts {
  std::uint64_t warps = 0;  // executions, by a warp or a part of it
  std::uint64_t lanes = 0;
  std::uint64_t sectors = 0, least_sectors = 0;
  std::uint64_t wavefronts = 0, least_wavefronts = 0;
};

struct Instruction {
  static constexpr int kNone = -1;

  Execute execute = nullptr;
  Kind kind = Kind::kPlain;
  int predicate = kNone;  // a register, like those below
  bool is_negated = false;
  std::array<int, 4> to = {kNone, kNone, kNone, kNone};
  std::array<int, 5> from = {kNone, kNone, kNone, kNone, kNone};
  int elements = 1;         // of a vector
  int target = 0;           // of a branch
  std::int64_t offset = 0;  // of an address
  std::string name;         // "ld.global.v4.f32"
  std::string text;         // with its operands
  int line = 0;             // of the file
  mutable Counts counts;
};

inline constexpr int kMeetingMask = 4;  // in Instruction::from

struct Parameter {
  std::string name;
  std::size_t offset, bytes;
};

struct Kernel {
  std::string name;
  std::string error;  // of the parser: a launch fails with it
  std::vector<Parameter> parameters;
  std::size_t parameter_bytes = 0;
  unsigned max_threads = 0;  // 0: not said
  std::vector<Instruction> code;
  int registers = 0;
  std::vector<std::pair<int, Bits>> constants;
  std::vector<std::pair<int, std::string>> specials;  // "%tid.x"
  // Of all launches: how many, their blocks, and of a block the most threads and shared memory.
  std::uint64_t launches = 0, blocks = 0;
  unsigned threads = 0;
  std::size_t shared_bytes = 0;
};

// Kernels by name, as launchers ask for them.
using Kernels = std::map<std::string, Kernel>;

struct Launch {
  Kernel& kernel;
  unsigned blocks, threads, cluster;
  std::size_t shared_bytes;
  std::vector<unsigned char> parameters;
};

// --- the state of threads ------------------------------------------------------------------------

enum class State : std::uint8_t { kRunnable, kEnded, kAtBarrier, kAtClusterBarrier, kAtMeeting };

struct Block;

struct Warp {
  Block* block = nullptr;
  std::vector<Bits> bits;                // [register, lane]
  std::array<int, kWarpSize> next = {};  // instruction of each lane
  std::array<State, kWarpSize> state = {};
  std::array<std::uint64_t, kWarpSize> awaited_phase = {};  // of the cluster; 0: has not arrived
  Mask alive = 0;

  unsigned number() const;  // in its block

  Bits* operator[](int number) {
    return bits.data() + static_cast<std::size_t>(number) * kWarpSize;
  }
  Mask lanes_that(State wanted) const {
    Mask mask = 0;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      mask |= static_cast<Mask>(state[lane] == wanted) << lane;
    }
    return mask;
  }
};

// Blocks that are resident together, and their barrier.
struct Cluster {
  unsigned alive = 0, arrived = 0;  // threads
  std::uint64_t phase = 0;          // times that all have arrived
};

struct Block {
  unsigned number = 0;
  const Launch* launch = nullptr;
  std::shared_ptr<Cluster> cluster;
  std::vector<Warp> warps;
  SharedMemory shared{0};
  unsigned alive = 0, waiting = 0;  // threads
  bool any_vote = false;            // of bar.red.or
  std::string printed;
};

inline unsigned Warp::number() const { return static_cast<unsigned>(this - block->warps.data()); }

// --- small tools ---------------------------------------------------------------------------------

template <typename Function>
void for_each_lane(Mask mask, Function function) {
  if (mask == ~Mask{0}) {
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      function(lane);
    }
    return;
  }
  for (; mask != 0; mask &= mask - 1) {
    function(static_cast<unsigned>(std::countr_zero(mask)));
  }
}

template <typename T>
T value_of(Bits bits) {
  if constexpr (std::is_same_v<T, bool>) {
    return (bits & 1) != 0;
  } else {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
}

// Signed integers are extended by their sign: a wider register may take them.
template <typename T>
Bits bits_of(T value) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<Bits>(static_cast<std::int64_t>(value));
  } else {
    Bits bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
  }
}

}  // namespace ptx
