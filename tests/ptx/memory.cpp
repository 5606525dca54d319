#include "memory.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <vector>

namespace ptx {
namespace {

struct Range {
  std::uintptr_t begin = 0, end = 0;
  bool holds(std::uintptr_t address, std::size_t bytes) const {
    return begin <= address && address + bytes <= end;
  }
};

std::mutex mutex;                                  // tensors are freed by any thread
std::map<std::uintptr_t, std::uintptr_t> allowed;  // ends by beginnings
thread_local Range latest;                         // spares most look-ups
thread_local std::uint64_t latest_version = 0;
std::atomic<std::uint64_t> version = 1;  // of `allowed`, raised when a range goes
thread_local std::vector<const void*> given;

}  // namespace

bool may_touch(std::uintptr_t address, std::size_t bytes) {
  if (latest_version == version && latest.holds(address, bytes)) {
    return true;
  }
  const std::lock_guard lock(mutex);
  const auto behind = allowed.upper_bound(address);
  if (behind == allowed.begin()) {
    return false;
  }
  const auto [begin, end] = *std::prev(behind);
  latest = {begin, end};
  latest_version = version;
  return latest.holds(address, bytes);
}

void allow(const void* memory, std::size_t bytes) {
  const std::lock_guard lock(mutex);
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  std::uintptr_t& end = allowed[begin];
  end = std::max(end, begin + bytes);
}

void forbid(const void* memory) {
  const std::lock_guard lock(mutex);
  allowed.erase(reinterpret_cast<std::uintptr_t>(memory));
  ++version;
}

void give(const void* memory, std::size_t bytes) {
  if (bytes > 0 && !may_touch(reinterpret_cast<std::uintptr_t>(memory), bytes)) {
    allow(memory, bytes);
    given.push_back(memory);
  }
}

void take_back_given() {
  for (const void* memory : given) {
    forbid(memory);
  }
  given.clear();
}

}  // namespace ptx
