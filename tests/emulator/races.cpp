// The compiler calls the functions at the end before every load and store of a kernel (build.py:
// CHECKED); they stand in for its own runtime library, to which fibers of one OS thread cannot
// race.
//
// Every word of memory has a record of its latest write and of two reads since. What orders two
// accesses: a barrier of the block or the cluster, a warp operation in which both threads take
// part, the boundary of two launches, and nothing else. An atomic access does not race with another
// one. Clusters of one launch are never ordered, not even by an atomic counter and a fence.
#include "races.h"

#include <dlfcn.h>

#include <array>
#include <memory>
#include <unordered_map>

#include "device.h"
#include "fiber.h"

namespace emulator {
namespace {

struct Access {
  const void* code = nullptr;  // null: none
  Moment moment;
  unsigned char bytes = 0;  // of the word, one bit each
  bool is_atomic = false;
  bool is_write = false;
};

struct Word {
  Access write;
  std::array<Access, 2> reads;
};

constexpr std::uintptr_t kWordBytes = 4;
constexpr std::uintptr_t kPageBytes = 4096;

struct Page {
  std::uint64_t launch = 0;  // of another one: empty
  std::array<Word, kPageBytes / kWordBytes> words;
};

std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages;
std::uint64_t this_launch = 1;
std::uintptr_t latest_number = 0;  // the two spare most look-ups
Page* latest_page = nullptr;

Word& word_at(std::uintptr_t address) {
  const std::uintptr_t number = address / kPageBytes;
  if (latest_page == nullptr || number != latest_number) {
    std::unique_ptr<Page>& page = pages[number];
    if (page == nullptr) {
      page = std::make_unique<Page>();
    }
    latest_number = number;
    latest_page = page.get();
  }
  if (latest_page->launch != this_launch) {
    latest_page->words.fill({});
    latest_page->launch = this_launch;
  }
  return latest_page->words[address % kPageBytes / kWordBytes];
}

bool are_of_one_warp(const Moment& a, const Moment& b) {
  return a.thread / kWarpSize == b.thread / kWarpSize;
}

bool is_ordered(const Moment& before, const Moment& now) {
  if (before.thread == now.thread) {
    return true;
  }
  if (before.cluster == now.cluster && before.cluster_barriers != now.cluster_barriers) {
    return true;
  }
  if (before.thread / kMaxThreadsPerBlock != now.thread / kMaxThreadsPerBlock) {
    return false;
  }
  return before.barriers != now.barriers ||
         (are_of_one_warp(before, now) && before.clock < now.clock);
}

// "file:line" of the code that called, as far as its debug information goes.
std::string source_line(const void* return_address) {
  Dl_info library = {};
  if (dladdr(return_address, &library) == 0) {
    return "unknown code";
  }
  const auto offset =
      static_cast<const char*>(return_address) - static_cast<const char*>(library.dli_fbase) - 1;
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx", library.dli_fname,
                static_cast<std::size_t>(offset));
  char line[512] = "unknown code";
  if (FILE* output = popen(command, "r"); output != nullptr) {
    if (std::fgets(line, sizeof line, output) != nullptr) {
      line[std::strcspn(line, " \n")] = '\0';
    }
    pclose(output);
  }
  return line;
}

[[noreturn]] void report(const Access& now, const Access& before, std::uintptr_t address) {
  const auto name = [](const Access& access) {
    return std::string(access.is_atomic ? "atomic " : "") + (access.is_write ? "write" : "read");
  };
  fail({}, "race: %s at %s, address %p, and %s of block %u thread %u at %s", name(now).c_str(),
       source_line(now.code).c_str(), reinterpret_cast<void*>(address), name(before).c_str(),
       before.moment.thread / kMaxThreadsPerBlock, before.moment.thread % kMaxThreadsPerBlock,
       source_line(before.code).c_str());
}

bool do_race(const Access& before, const Access& now) {
  return before.code != nullptr && (before.bytes & now.bytes) != 0 &&
         !(before.is_atomic && now.is_atomic) && !is_ordered(before.moment, now.moment);
}

// Two reads are enough if they are of different warps: whoever writes then is not ordered after
// one of them, or after both.
void remember_read(Word& word, const Access& now) {
  for (Access& read : word.reads) {
    if (read.code == nullptr || is_ordered(read.moment, now.moment)) {
      read = now;
      return;
    }
  }
  if (are_of_one_warp(word.reads[0].moment, word.reads[1].moment)) {
    word.reads[1] = now;
  }
}

void check_word(std::uintptr_t address, const Access& now) {
  Word& word = word_at(address);
  if (do_race(word.write, now)) {
    report(now, word.write, address);
  }
  if (!now.is_write) {
    remember_read(word, now);
    return;
  }
  for (const Access& read : word.reads) {
    if (do_race(read, now)) {
      report(now, read, address);
    }
  }
  word.write = now;
  word.reads.fill({});
}

void check(const void* pointer, std::size_t bytes, bool is_write, bool is_atomic,
           const void* code) {
  if (!device.settings.find_races || !in_kernel() || is_on_running_fiber(pointer)) {
    return;
  }
  Access now = {code, current_moment(), 0, is_atomic, is_write};
  const auto begin = reinterpret_cast<std::uintptr_t>(pointer);
  const std::uintptr_t end = begin + bytes;
  for (std::uintptr_t word = begin / kWordBytes * kWordBytes; word < end; word += kWordBytes) {
    const std::uintptr_t first = std::max(word, begin) - word;
    const std::uintptr_t last = std::min(word + kWordBytes, end) - word;
    now.bytes = static_cast<unsigned char>((1u << last) - (1u << first));
    check_word(word, now);
  }
}

}  // namespace

void forget_accesses() {
  constexpr std::size_t kMany = 4096;  // 300 MB
  if (pages.size() > kMany) {
    pages.clear();
    latest_page = nullptr;
  }
  ++this_launch;
}

void forget_accesses(const void* memory, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory) / kWordBytes * kWordBytes;
  for (std::uintptr_t at = begin; at < begin + bytes + kWordBytes; at += kWordBytes) {
    word_at(at) = {};
  }
}

void announce_atomic(const void* pointer, std::size_t bytes, bool is_write) {
  check(pointer, bytes, is_write, true, __builtin_return_address(0));
}

}  // namespace emulator

#define HOOKS(bytes)                                                            \
  void __tsan_read##bytes(void* pointer) {                                      \
    emulator::check(pointer, bytes, false, false, __builtin_return_address(0)); \
  }                                                                             \
  void __tsan_write##bytes(void* pointer) {                                     \
    emulator::check(pointer, bytes, true, false, __builtin_return_address(0));  \
  }                                                                             \
  void __tsan_unaligned_read##bytes(void* pointer) {                            \
    emulator::check(pointer, bytes, false, false, __builtin_return_address(0)); \
  }                                                                             \
  void __tsan_unaligned_write##bytes(void* pointer) {                           \
    emulator::check(pointer, bytes, true, false, __builtin_return_address(0));  \
  }

extern "C" {

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void* pointer, std::size_t bytes) {
  emulator::check(pointer, bytes, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* pointer, std::size_t bytes) {
  emulator::check(pointer, bytes, true, false, __builtin_return_address(0));
}

void* __tsan_memcpy(void* to, const void* from, std::size_t bytes) {
  emulator::check(from, bytes, false, false, __builtin_return_address(0));
  emulator::check(to, bytes, true, false, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, std::size_t bytes) {
  emulator::check(to, bytes, true, false, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}  // extern "C"
