// How many pieces of memory the lanes of a warp come to at once.
#pragma once

#include <cstddef>
#include <vector>

#include "ptx.h"

namespace ptx {

// From now on sectors and wavefronts are counted, and the schedule is the plain one: no group of
// lanes is split that need not be.
void count_accesses(bool wanted);
bool counts_accesses();

// Of accesses of `bytes` each.
void count_sectors(Counts& counts, const std::vector<Bits>& addresses, std::size_t bytes);
void count_wavefronts(Counts& counts, const std::vector<Bits>& addresses, std::size_t bytes);

}  // namespace ptx
