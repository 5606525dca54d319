// Loads, stores and atomics.
#include <algorithm>
#include <cstdio>
#include <set>

#include "access_counts.h"
#include "instructions.h"
#include "memory.h"

namespace ptx {
namespace {

constexpr Bits kWindowEnd = kWindow + (Bits{1} << 32);

enum class Space { kGeneric, kGlobal, kShared };

std::string hex(Bits value) {
  char text[32];
  std::snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(value));
  return text;
}

bool is_shared(Bits address, Space space) {
  return space == Space::kShared ||
         (space == Space::kGeneric && address >= kWindow && address < kWindowEnd);
}

using Access = SharedMemory::Access;

unsigned char* resolve(Warp& warp, Bits address, std::size_t bytes, Space space, Access access) {
  if (address % bytes != 0) {
    throw Fault("address " + hex(address) + " is not aligned to " + std::to_string(bytes) +
                " bytes");
  }
  if (is_shared(address, space)) {
    const Bits offset = static_cast<std::uint32_t>(address) - Bits{kSharedBase};
    return warp.block->shared.at(offset, bytes, warp.number(), access);
  }
  if (!may_touch(address, bytes)) {
    throw Fault(std::to_string(bytes) + " bytes at " + hex(address) + " are not allocated");
  }
  return reinterpret_cast<unsigned char*>(address);
}

void count(Warp& warp, const Instruction& instruction, Mask mask, std::size_t bytes, Space space) {
  if (!counts_accesses()) {
    return;
  }
  std::vector<Bits> global, shared;
  for_each_lane(mask, [&](unsigned lane) {
    const Bits address = warp[instruction.from[0]][lane] + static_cast<Bits>(instruction.offset);
    (is_shared(address, space) ? shared : global).push_back(address);
  });
  if (!global.empty()) {
    count_sectors(instruction.counts, global, bytes);
  }
  if (!shared.empty()) {
    count_wavefronts(instruction.counts, shared, bytes);
  }
}

Bits address_of(Warp& warp, const Instruction& instruction, unsigned lane) {
  return warp[instruction.from[0]][lane] + static_cast<Bits>(instruction.offset);
}

template <typename T>
T read(const unsigned char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// A lane reads its whole vector before it writes a register, which may be that of the address.
template <typename T>
void read_vector(Warp& warp, const Instruction& instruction, unsigned lane,
                 const unsigned char* from) {
  for (int i = 0; i < instruction.elements; ++i) {
    if (instruction.to[i] != Instruction::kNone) {
      warp[instruction.to[i]][lane] = bits_of(read<T>(from + i * sizeof(T)));
    }
  }
}

template <typename T, Space kSpace>
void load(Warp& warp, const Instruction& instruction, Mask mask) {
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(instruction.elements);
  count(warp, instruction, mask, bytes, kSpace);
  for_each_lane(mask, [&](unsigned lane) {
    const Bits address = address_of(warp, instruction, lane);
    read_vector<T>(warp, instruction, lane, resolve(warp, address, bytes, kSpace, Access::kRead));
  });
}

template <typename T, Space kSpace>
void store(Warp& warp, const Instruction& instruction, Mask mask) {
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(instruction.elements);
  count(warp, instruction, mask, bytes, kSpace);
  for_each_lane(mask, [&](unsigned lane) {
    const Bits address = address_of(warp, instruction, lane);
    unsigned char* to = resolve(warp, address, bytes, kSpace, Access::kWrite);
    for (int i = 0; i < instruction.elements; ++i) {
      std::memcpy(to + i * sizeof(T), &warp[instruction.from[1 + i]][lane], sizeof(T));
    }
  });
}

template <typename T>
void load_parameter(Warp& warp, const Instruction& instruction, Mask mask) {
  const std::vector<unsigned char>& parameters = warp.block->launch->parameters;
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(instruction.elements);
  for_each_lane(mask, [&](unsigned lane) {
    const Bits offset = address_of(warp, instruction, lane);
    if (offset % bytes != 0 || offset + bytes > parameters.size()) {
      throw Fault("no parameter at offset " + std::to_string(offset));
    }
    read_vector<T>(warp, instruction, lane, parameters.data() + offset);
  });
}

enum class Change { kAdd, kMin, kMax, kAnd, kOr, kExchange, kCompareAndSwap };

template <typename T, Change kChange>
T changed(T old, T given, T other) {
  switch (kChange) {
    case Change::kAdd:
      return static_cast<T>(old + given);
    case Change::kMin:
      return std::min(old, given);
    case Change::kMax:
      return std::max(old, given);
    case Change::kExchange:
      return given;
    case Change::kCompareAndSwap:
      return old == given ? other : old;
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>) {
    return kChange == Change::kAnd ? old & given : old | given;
  }
  return old;
}

template <typename T, Space kSpace, Change kChange>
void atomic(Warp& warp, const Instruction& instruction, Mask mask) {
  count(warp, instruction, mask, sizeof(T), kSpace);
  const bool has_other = instruction.from[2] != Instruction::kNone;
  for_each_lane(mask, [&](unsigned lane) {
    const Bits address = address_of(warp, instruction, lane);
    unsigned char* at = resolve(warp, address, sizeof(T), kSpace, Access::kAtomic);
    const T old = read<T>(at);
    const T given = value_of<T>(warp[instruction.from[1]][lane]);
    const T other = has_other ? value_of<T>(warp[instruction.from[2]][lane]) : T{};
    const T value = changed<T, kChange>(old, given, other);
    std::memcpy(at, &value, sizeof value);
    if (instruction.to[0] != Instruction::kNone) {
      warp[instruction.to[0]][lane] = bits_of(old);
    }
  });
}

// --- names ---------------------------------------------------------------------------------------

// What changes nothing here: hints to caches, order and scope, which the schedule makes stronger.
const std::set<std::string> kIgnored = {"nc",
                                        "ca",
                                        "cg",
                                        "cs",
                                        "lu",
                                        "cv",
                                        "wb",
                                        "wt",
                                        "v2",
                                        "v4",
                                        "weak",
                                        "volatile",
                                        "relaxed",
                                        "acquire",
                                        "release",
                                        "acq_rel",
                                        "cta",
                                        "cluster",
                                        "gpu",
                                        "sys",
                                        "noftz",
                                        "uni",
                                        "L1::no_allocate",
                                        "L1::evict_first",
                                        "L1::evict_last",
                                        "L1::evict_normal"};

// Calls make with a value of the type that a name ends with. Floats are copied as their bits.
template <typename Make>
Execute of_type(const std::string& type, bool has_floats, Make make) {
  const std::string bits = type.substr(1);
  if (type[0] == 's') {
    return bits == "8"    ? make(std::int8_t{})
           : bits == "16" ? make(std::int16_t{})
           : bits == "32" ? make(std::int32_t{})
           : bits == "64" ? make(std::int64_t{})
                          : nullptr;
  }
  if (type[0] == 'f' && has_floats) {
    return bits == "32" ? make(float{}) : bits == "64" ? make(double{}) : nullptr;
  }
  return bits == "8"    ? make(std::uint8_t{})
         : bits == "16" ? make(std::uint16_t{})
         : bits == "32" ? make(std::uint32_t{})
         : bits == "64" ? make(std::uint64_t{})
                        : nullptr;
}

template <typename T, Change kChange>
Execute atomic_in(Space space) {
  return space == Space::kGlobal   ? atomic<T, Space::kGlobal, kChange>
         : space == Space::kShared ? atomic<T, Space::kShared, kChange>
                                   : atomic<T, Space::kGeneric, kChange>;
}

template <typename T>
Execute atomic_of(const std::string& change, Space space) {
  return change == "add"    ? atomic_in<T, Change::kAdd>(space)
         : change == "min"  ? atomic_in<T, Change::kMin>(space)
         : change == "max"  ? atomic_in<T, Change::kMax>(space)
         : change == "and"  ? atomic_in<T, Change::kAnd>(space)
         : change == "or"   ? atomic_in<T, Change::kOr>(space)
         : change == "exch" ? atomic_in<T, Change::kExchange>(space)
         : change == "cas"  ? atomic_in<T, Change::kCompareAndSwap>(space)
                            : nullptr;
}

Execute access(const std::string& verb, const std::string& type, const std::string& change,
               const std::string& place) {
  const Space space = place == "global"   ? Space::kGlobal
                      : place == "shared" ? Space::kShared
                                          : Space::kGeneric;
  const bool is_atomic = verb == "atom" || verb == "red";
  return of_type(type, is_atomic, [&](auto value) -> Execute {
    using T = decltype(value);
    if (is_atomic) {
      if constexpr (sizeof(T) >= 4) {
        return atomic_of<T>(change, space);
      }
      return nullptr;
    }
    if (place == "param") {
      return load_parameter<T>;
    }
    if (verb == "st") {
      return space == Space::kGlobal   ? store<T, Space::kGlobal>
             : space == Space::kShared ? store<T, Space::kShared>
                                       : store<T, Space::kGeneric>;
    }
    return space == Space::kGlobal   ? load<T, Space::kGlobal>
           : space == Space::kShared ? load<T, Space::kShared>
                                     : load<T, Space::kGeneric>;
  });
}

}  // namespace

Execute memory_access(const std::vector<std::string>& name) {
  std::string place, change;
  for (std::size_t i = 1; i + 1 < name.size(); ++i) {
    if (name[i] == "global" || name[i] == "shared" || name[i] == "param") {
      place = name[i];
    } else if (kIgnored.count(name[i]) == 0) {
      if (!change.empty()) {
        return nullptr;
      }
      change = name[i];
    }
  }
  const bool is_atomic = name[0] == "atom" || name[0] == "red";
  return is_atomic == change.empty() ? nullptr : access(name[0], name.back(), change, place);
}

}  // namespace ptx
