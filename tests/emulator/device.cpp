// The scheduler: runs the threads of a grid in a random legal order.
#include "device.h"

#include <algorithm>
#include <cstdarg>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "fiber.h"
#include "grid.h"
#include "races.h"

// Of AddressSanitizer's runtime library, where a process has it.
extern "C" __attribute__((weak)) void __asan_poison_memory_region(const volatile void* begin,
                                                                  std::size_t bytes);

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulator {

Device device;
Grid* grid = nullptr;
Thread* current = nullptr;

namespace {

// --- whose turn it is ----------------------------------------------------------------------------

Block* pick_block() {
  constexpr std::size_t kTurnsInARow = 16;
  if (grid->latest != nullptr && !grid->latest->runnable.empty() &&
      !grid->random.one_in(kTurnsInARow)) {
    return grid->latest;
  }
  const std::size_t count = grid->resident.size();
  const std::size_t first = count == 0 ? 0 : grid->random.below(count);
  for (std::size_t i = 0; i < count; ++i) {
    Block* block = grid->resident[(first + i) % count].get();
    if (!block->runnable.empty()) {
      return block;
    }
  }
  return nullptr;
}

std::size_t pick_runnable(const std::vector<Thread*>& runnable) {
  Random& random = grid->random;
  const std::size_t last = runnable.size() - 1;
  switch (grid->style) {
    case Style::kUniform:
      return random.below(runnable.size());
    case Style::kLastWoken:
      return last;
    case Style::kMostlyLastWoken:
      return random.one_in(4) ? random.below(runnable.size()) : last;
    case Style::kWarpPriorities:
      break;
  }
  constexpr int kTries =
      8;  // the best of a few: nearly always of the most urgent warps, at little cost
  std::size_t best = last;
  for (int i = 0; i < kTries; ++i) {
    const std::size_t other = random.below(runnable.size());
    best = runnable[other]->warp->priority > runnable[best]->warp->priority ? other : best;
  }
  return best;
}

Thread* pick_thread() {
  grid->latest = pick_block();
  if (grid->latest == nullptr) {
    return nullptr;
  }
  std::vector<Thread*>& runnable = grid->latest->runnable;
  std::swap(runnable[pick_runnable(runnable)], runnable.back());
  Thread* thread = runnable.back();
  runnable.pop_back();
  return thread;
}

// --- the life of a block -------------------------------------------------------------------------

// Shared memory between two red zones, and on an address that is aligned to what CUDA promises but
// not to more.
void give_shared_memory(Block& block, std::size_t bytes) {
  constexpr std::size_t kRedZone = 1024;
  constexpr std::size_t kAlignment = 16;
  block.shared_with_red_zones.assign(kRedZone + 2 * kAlignment + bytes + kRedZone, kUninitialised);
  block.shared = block.shared_with_red_zones.data() + kRedZone;
  while (reinterpret_cast<std::uintptr_t>(block.shared) % (2 * kAlignment) != kAlignment) {
    ++block.shared;
  }
  forget_accesses(block.shared, bytes);
  if (__asan_poison_memory_region != nullptr) {
    unsigned char* begin = block.shared_with_red_zones.data();
    unsigned char* end = begin + block.shared_with_red_zones.size();
    __asan_poison_memory_region(begin, static_cast<std::size_t>(block.shared - begin));
    __asan_poison_memory_region(block.shared + bytes,
                                static_cast<std::size_t>(end - block.shared) - bytes);
  }
}

void check_red_zones(Block& block) {
  const auto is_written = [](unsigned char byte) { return byte != kUninitialised; };
  unsigned char* begin = block.shared_with_red_zones.data();
  unsigned char* end = begin + block.shared_with_red_zones.size();
  if (std::any_of(begin, block.shared, is_written) ||
      std::any_of(block.shared + grid->call.shared_bytes, end, is_written)) {
    fail({}, "the block wrote outside its %zu bytes of shared memory", grid->call.shared_bytes);
  }
}

std::unique_ptr<Block> make_block(unsigned number, const std::shared_ptr<Cluster>& cluster) {
  const dim3 grid_size = grid->call.grid;
  const dim3 size = grid->call.block;
  const unsigned threads = size.x * size.y * size.z;
  auto block = std::make_unique<Block>();
  block->index = {number % grid_size.x, number / grid_size.x % grid_size.y,
                  number / (grid_size.x * grid_size.y)};
  block->cluster = cluster;
  block->alive = threads;
  cluster->alive += threads;
  block->threads.resize(threads);
  block->warps.resize((threads + kWarpSize - 1) / kWarpSize);
  for (Warp& warp : block->warps) {
    warp.priority = grid->random.next();
  }
  for (unsigned i = 0; i < threads; ++i) {
    Thread& thread = block->threads[i];
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.lane = i % kWarpSize;
    thread.number = number * kMaxThreadsPerBlock + i;
    thread.block = block.get();
    thread.warp = &block->warps[i / kWarpSize];
    thread.warp->lanes.push_back(&thread);
    thread.warp->alive |= 1u << thread.lane;
    block->runnable.push_back(&thread);
  }
  grid->random.shuffle(block->runnable);
  give_shared_memory(*block, grid->call.shared_bytes);
  return block;
}

// The body of every fiber.
void run_current_thread() noexcept {
  grid->call.invoke(grid->call.arguments);
  Block& block = *current->block;
  Warp& warp = *current->warp;
  current->has_returned = true;
  --block.alive;
  --block.cluster->alive;
  warp.alive &= ~(1u << current->lane);
  release_if_complete(block);
  release_if_complete(*block.cluster);
  for (Meeting& meeting : warp.meetings) {
    if (is_gathering(meeting)) {
      close_if_complete(warp, meeting);
    }
  }
  if (block.alive == 0) {
    check_red_zones(block);
    forget_accesses(block.shared, grid->call.shared_bytes);
  }
  suspend();
}

void give_turn_to(Thread* thread) {
  if (thread->fiber == nullptr) {
    thread->fiber = take_fiber(run_current_thread);
  }
  current = thread;
  threadIdx = thread->index;
  blockIdx = thread->block->index;
  resume(thread->fiber);
  current = nullptr;
  if (thread->has_returned) {
    give_back_fiber(thread->fiber);
    thread->fiber = nullptr;
  }
}

void start_blocks() {
  const auto room = static_cast<std::size_t>(device.settings.resident_blocks);
  while (!grid->to_start.empty() && grid->resident.size() < room) {
    const auto cluster = std::make_shared<Cluster>();
    cluster->number = grid->to_start.back();
    for (unsigned i = 0; i < grid->call.cluster; ++i) {
      grid->resident.push_back(make_block(cluster->number * grid->call.cluster + i, cluster));
    }
    grid->to_start.pop_back();
  }
}

void remove_latest_block() {
  std::erase_if(grid->resident, [](const auto& block) { return block.get() == grid->latest; });
  grid->latest = nullptr;
}

void report_deadlock() {
  std::map<std::string, int> places;
  for (const auto& block : grid->resident) {
    for (const Thread& thread : block->threads) {
      if (!thread.has_returned) {
        ++places[std::string(thread.waits_in) + " at " + thread.where.file + ":" +
                 std::to_string(thread.where.line)];
      }
    }
  }
  std::string message = "deadlock:";
  for (const auto& [place, count] : places) {
    message += " " + std::to_string(count) + " threads wait in " + place + ";";
  }
  break_device(message);
}

}  // namespace

// --- what the built-ins call ---------------------------------------------------------------------

unsigned char* dynamic_shared() { return current->block->shared; }

unsigned lane() { return current->lane; }

void preempt() {
  constexpr std::size_t kOftenEnough = 8;  // for a loop that waits for another thread, too
  if (grid->random.one_in(kOftenEnough)) {
    std::vector<Thread*>& runnable = current->block->runnable;
    runnable.push_back(current);
    std::swap(runnable.back(), runnable[grid->random.below(runnable.size())]);
    suspend();
  }
}

void copy_unseen(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

Moment current_moment() {
  const Cluster& cluster = *current->block->cluster;
  return {current->number, current->block->barrier.passed, cluster.number, cluster.passed,
          current->clock};
}

bool in_kernel() { return current != nullptr; }

void break_device(const std::string& message) {
  device.broken = true;
  device.message = message + " [seed " + std::to_string(device.settings.seed) + ", launch " +
                   std::to_string(device.launches) + "]";
}

void fail(Location where, const char* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char place[512] = "";
  if (where.line != 0) {
    std::snprintf(place, sizeof place, "%s:%u: ", where.file, where.line);
  }
  char who[128];
  std::snprintf(who, sizeof who, "block (%u,%u,%u) thread (%u,%u,%u): ", blockIdx.x, blockIdx.y,
                blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  break_device(std::string(place) + who + text);
  suspend();  // for good: the scheduler stops here, and what is on the stacks is forgotten
  std::abort();
}

void run_grid(const KernelCall& call) {
  Random random(device.settings.seed ^ device.launches << 48);
  const auto style = static_cast<Style>(random.below(kStyles));
  Grid running{call, random, style, {}, {}, nullptr};
  running.to_start.resize(static_cast<std::size_t>(call.grid.x) * call.grid.y * call.grid.z /
                          call.cluster);
  std::iota(running.to_start.begin(), running.to_start.end(), 0u);
  running.random.shuffle(running.to_start);
  grid = &running;
  gridDim = call.grid;
  blockDim = call.block;
  const FaultGuard guard;
  forget_accesses();
  start_blocks();
  while (Thread* thread = pick_thread()) {
    give_turn_to(thread);
    if (device.broken) {
      break;
    }
    if (grid->latest->alive == 0) {
      remove_latest_block();
      start_blocks();
    }
  }
  if (!device.broken && !grid->resident.empty()) {
    report_deadlock();
  }
  for (const auto& block : grid->resident) {
    for (const Thread& thread : block->threads) {
      if (thread.fiber != nullptr) {
        give_back_fiber(thread.fiber);
      }
    }
  }
  grid = nullptr;
}

}  // namespace emulator
