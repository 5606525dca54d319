// What each instruction does, by the name that PTX gives it.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "ptx.h"

namespace ptx {

using Table = std::unordered_map<std::string, Execute>;

// Arithmetic, comparisons, selections, conversions: one result, from the operands of the same lane.
const Table& arithmetic();
void add_conversions(Table& table);

// Loads, stores and atomics, by the parts of their names behind the first; nullptr: not known.
Execute memory_access(const std::vector<std::string>& name);

// shfl.sync, vote.sync, match.sync, bar.warp.sync.
const Table& meetings();

// mov between a register and several that are parts of it, of `bytes` each.
Execute pack(int bytes);
Execute unpack(int bytes);
Execute move();
Execute print();  // vprintf, of the format alone

// Where the dynamic shared memory of a block begins, in the addresses of st.shared; aligned to 16
// bytes and to no more.
inline constexpr std::uint32_t kSharedBase = 1040;

// Generic addresses of shared memory: a window where no process has memory.
inline constexpr Bits kWindow = 0x0FED'0000'0000'0000;

}  // namespace ptx
