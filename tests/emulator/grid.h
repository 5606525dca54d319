// The grid that runs: its clusters, blocks, warps and threads, for device.cpp (whose turn it is)
// and barriers.cpp (where they wait for each other).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "device.h"
#include "fiber.h"

namespace emulator {

class Random {  // splitmix64
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint32_t next() {
    state_ += 0x9E3779B97F4A7C15;
    std::uint64_t bits = (state_ ^ state_ >> 30) * 0xBF58476D1CE4E5B9;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB;
    return static_cast<std::uint32_t>(bits >> 32);
  }
  std::size_t below(std::size_t end) { return static_cast<std::uint64_t>(next()) * end >> 32; }
  bool one_in(std::size_t n) { return below(n) == 0; }

  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[below(i)]);
    }
  }

 private:
  std::uint64_t state_;
};

struct Block;
struct Cluster;
struct Warp;

struct Thread {
  uint3 index{};
  unsigned lane = 0;
  std::uint32_t number = 0;  // this and the next: for Moment
  std::uint32_t clock = 0;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Fiber* fiber = nullptr;  // from its first turn to its last
  bool has_returned = false;
  bool has_arrived = false;        // at the cluster's barrier, but does not wait there yet
  const char* waits_in = nullptr;  // this and the next: for the report of a deadlock
  Location where;
};

struct Warp {
  std::vector<Thread*> lanes;
  unsigned alive = 0;          // the lanes that have not returned
  std::uint32_t priority = 0;  // for Style::kWarpPriorities
  std::deque<Meeting>
      meetings;  // under way or unused; a deque, because lanes hold references to its elements
};

struct Barrier {
  std::vector<Thread*> waiting;
  Location where;
  Vote vote{};
  int votes = 0;   // true predicates so far
  int result = 0;  // of the last time that all had come
  std::uint32_t passed = 0;
};

// Blocks that are resident together, and their barrier: a thread arrives there, then waits for all.
struct Cluster {
  std::uint32_t number = 0;
  std::size_t alive = 0;  // the threads that have not returned
  std::vector<Thread*> waiting;
  std::uint32_t passed = 0;
};

struct Block {
  uint3 index{};
  std::shared_ptr<Cluster> cluster;
  std::size_t alive = 0;  // the threads that have not returned
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> runnable;
  Barrier barrier;
  std::vector<unsigned char> shared_with_red_zones;
  unsigned char* shared = nullptr;
};

// How a launch picks the next thread. A uniform choice alone hardly ever lets one warp run far
// ahead of the others, so it misses the races that need that; each launch draws one of these
// instead.
enum class Style { kUniform, kLastWoken, kMostlyLastWoken, kWarpPriorities };
constexpr std::size_t kStyles = 4;

struct Grid {
  KernelCall call;
  Random random;
  Style style;
  std::vector<unsigned> to_start;  // numbers of clusters, the next one last
  std::vector<std::unique_ptr<Block>> resident;
  Block* latest = nullptr;  // had the last turn
};

extern Grid* grid;       // the one that runs
extern Thread* current;  // null: the host runs

// --- barriers.cpp --------------------------------------------------------------------------------

// Lets the threads at a barrier go on if all that have not returned are there.
void release_if_complete(Block& block);
void release_if_complete(Cluster& cluster);

// Whether lanes are still to come to a warp operation, and the end of that if none is.
bool is_gathering(const Meeting& meeting);
void close_if_complete(Warp& warp, Meeting& meeting);

}  // namespace emulator
