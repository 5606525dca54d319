// What the lanes that a mask names do together. The scheduler calls these when all of them have
// come; a source that is not among them is a fault.
#include <algorithm>

#include "instructions.h"

namespace ptx {
namespace {

enum class Direction { kUp, kDown, kButterfly, kIndex };

// The lane that one reads, and whether it lies in its own segment.
std::pair<unsigned, bool> source_of(Direction direction, unsigned lane, Bits operand, Bits limits) {
  const auto self = static_cast<int>(lane), by = static_cast<int>(operand & 31);
  const auto segment = static_cast<int>(limits >> 8 & 31), clamp = static_cast<int>(limits & 31);
  const int first = self & segment, last = first | (clamp & ~segment);
  switch (direction) {
    case Direction::kUp:
      return {static_cast<unsigned>(self - by), self - by >= last};
    case Direction::kDown:
      return {static_cast<unsigned>(self + by), self + by <= last};
    case Direction::kButterfly:
      return {static_cast<unsigned>(self ^ by), (self ^ by) <= last};
    default:
      return {static_cast<unsigned>(first | (by & ~segment)), (first | (by & ~segment)) <= last};
  }
}

// d|p = a of another lane, or of this one where p is false.
template <Direction kDirection>
void shuffle(Warp& warp, const Instruction& instruction, Mask mask) {
  std::array<Bits, kWarpSize> values;
  std::copy_n(warp[instruction.from[0]], kWarpSize, values.begin());
  const std::array<int, 4>& to = instruction.to;
  for_each_lane(mask, [&](unsigned lane) {
    const auto [source, inside] = source_of(kDirection, lane, warp[instruction.from[1]][lane],
                                            warp[instruction.from[2]][lane]);
    const unsigned from = inside ? source : lane;
    if ((mask >> from & 1) == 0) {
      throw Fault("lane " + std::to_string(lane) + " reads from lane " + std::to_string(from) +
                  ", which does not take part");
    }
    warp[to[0]][lane] = values[from] & 0xffffffff;
    if (to[1] != Instruction::kNone) {
      warp[to[1]][lane] = inside;
    }
  });
}

Mask votes(Warp& warp, const Instruction& instruction, Mask mask) {
  Mask result = 0;
  for_each_lane(mask, [&](unsigned lane) {
    result |= static_cast<Mask>(warp[instruction.from[0]][lane] & 1) << lane;
  });
  return result;
}

void give_all(Warp& warp, const Instruction& instruction, Mask mask, Bits value) {
  for_each_lane(mask, [&](unsigned lane) { warp[instruction.to[0]][lane] = value; });
}

void ballot(Warp& warp, const Instruction& instruction, Mask mask) {
  give_all(warp, instruction, mask, votes(warp, instruction, mask));
}
void any(Warp& warp, const Instruction& instruction, Mask mask) {
  give_all(warp, instruction, mask, votes(warp, instruction, mask) != 0);
}
void all(Warp& warp, const Instruction& instruction, Mask mask) {
  give_all(warp, instruction, mask, votes(warp, instruction, mask) == mask);
}

template <typename T>
void match_any(Warp& warp, const Instruction& instruction, Mask mask) {
  std::array<Bits, kWarpSize> values;
  std::copy_n(warp[instruction.from[0]], kWarpSize, values.begin());
  for_each_lane(mask, [&](unsigned lane) {
    Mask equal = 0;
    for_each_lane(mask, [&](unsigned other) {
      const bool is_equal = value_of<T>(values[other]) == value_of<T>(values[lane]);
      equal |= static_cast<Mask>(is_equal) << other;
    });
    warp[instruction.to[0]][lane] = equal;
  });
}

void meet(Warp&, const Instruction&, Mask) {}

// --- not of several lanes, but of several registers ----------------------------------------------

void copy(Warp& warp, const Instruction& instruction, Mask mask) {
  for_each_lane(mask, [&](unsigned lane) {
    warp[instruction.to[0]][lane] = warp[instruction.from[0]][lane];
  });
}

template <typename Part>
void pack_parts(Warp& warp, const Instruction& instruction, Mask mask) {
  for_each_lane(mask, [&](unsigned lane) {
    Bits whole = 0;
    for (int i = 0; i < instruction.elements; ++i) {
      whole |= Bits{value_of<Part>(warp[instruction.from[i]][lane])} << 8 * sizeof(Part) * i;
    }
    warp[instruction.to[0]][lane] = whole;
  });
}

template <typename Part>
void unpack_parts(Warp& warp, const Instruction& instruction, Mask mask) {
  for_each_lane(mask, [&](unsigned lane) {
    const Bits whole = warp[instruction.from[0]][lane];
    for (int i = 0; i < instruction.elements; ++i) {
      if (instruction.to[i] != Instruction::kNone) {
        warp[instruction.to[i]][lane] = static_cast<Part>(whole >> 8 * sizeof(Part) * i);
      }
    }
  });
}

void print_format(Warp& warp, const Instruction& instruction, Mask mask) {
  for_each_lane(mask, [&](unsigned lane) {
    warp.block->printed = reinterpret_cast<const char*>(warp[instruction.from[0]][lane]);
    warp[instruction.to[0]][lane] = warp.block->printed.size();
  });
}

}  // namespace

const Table& meetings() {
  static const Table table = {{"shfl.sync.up.b32", shuffle<Direction::kUp>},
                              {"shfl.sync.down.b32", shuffle<Direction::kDown>},
                              {"shfl.sync.bfly.b32", shuffle<Direction::kButterfly>},
                              {"shfl.sync.idx.b32", shuffle<Direction::kIndex>},
                              {"vote.sync.ballot.b32", ballot},
                              {"vote.sync.any.pred", any},
                              {"vote.sync.all.pred", all},
                              {"match.any.sync.b32", match_any<std::uint32_t>},
                              {"match.any.sync.b64", match_any<std::uint64_t>},
                              {"bar.warp.sync", meet}};
  return table;
}

Execute move() { return copy; }
Execute pack(int bytes) {
  return bytes == 2 ? pack_parts<std::uint16_t> : bytes == 4 ? pack_parts<std::uint32_t> : nullptr;
}
Execute unpack(int bytes) {
  return bytes == 2   ? unpack_parts<std::uint16_t>
         : bytes == 4 ? unpack_parts<std::uint32_t>
                      : nullptr;
}
Execute print() { return print_format; }

}  // namespace ptx
