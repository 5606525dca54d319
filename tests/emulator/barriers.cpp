// Where the threads of a grid wait for each other: barriers of a block and of a cluster, warp
// operations.
#include <algorithm>
#include <bit>
#include <cstdint>

#include "device.h"
#include "fiber.h"
#include "grid.h"

namespace emulator {
namespace {

void make_runnable(Thread* thread) { thread->block->runnable.push_back(thread); }

void wait_in(const char* what, Location where) {
  current->waits_in = what;
  current->where = where;
  suspend();
}

Meeting& find_or_open_meeting(Warp& warp, unsigned mask, WarpOperation operation, Location where) {
  Meeting* unused = nullptr;
  for (Meeting& meeting : warp.meetings) {
    if (meeting.mask == 0) {
      unused = &meeting;
    } else if (is_gathering(meeting) && (meeting.mask & mask) != 0) {
      if (meeting.mask != mask || meeting.operation != operation || !(meeting.where == where)) {
        fail(where,
             "a warp operation with mask %08x, while lanes %08x wait in a different one with mask "
             "%08x at %s:%u",
             mask, meeting.lanes, meeting.mask, meeting.where.file, meeting.where.line);
      }
      return meeting;
    }
  }
  Meeting& meeting = unused != nullptr ? *unused : warp.meetings.emplace_back();
  meeting.mask = mask;
  meeting.lanes = 0;
  meeting.operation = operation;
  meeting.where = where;
  return meeting;
}

}  // namespace

void release_if_complete(Block& block) {
  Barrier& barrier = block.barrier;
  if (barrier.waiting.empty() || barrier.waiting.size() < block.alive) {
    return;
  }
  const bool all = static_cast<std::size_t>(barrier.votes) == barrier.waiting.size();
  const bool any = barrier.votes != 0;
  barrier.result = barrier.vote == Vote::kAll   ? all
                   : barrier.vote == Vote::kAny ? any
                                                : barrier.votes;
  barrier.votes = 0;
  ++barrier.passed;
  for (Thread* thread : barrier.waiting) {
    make_runnable(thread);
  }
  barrier.waiting.clear();
}

void release_if_complete(Cluster& cluster) {
  if (cluster.waiting.empty() || cluster.waiting.size() < cluster.alive) {
    return;
  }
  ++cluster.passed;
  for (Thread* thread : cluster.waiting) {
    make_runnable(thread);
  }
  cluster.waiting.clear();
}

bool is_gathering(const Meeting& meeting) { return meeting.mask != 0 && meeting.to_leave == 0; }

// A meeting does not wait for lanes that have returned.
void close_if_complete(Warp& warp, Meeting& meeting) {
  if ((meeting.mask & warp.alive & ~meeting.lanes) != 0) {
    return;
  }
  meeting.to_leave = static_cast<unsigned>(std::popcount(meeting.lanes));
  std::uint32_t latest = 0;
  for (const Thread* thread : warp.lanes) {
    latest = meeting.has(thread->lane) ? std::max(latest, thread->clock) : latest;
  }
  for (Thread* thread : warp.lanes) {
    if (meeting.has(thread->lane)) {
      thread->clock = latest + 1;
      if (thread != current) {
        make_runnable(thread);
      }
    }
  }
}

int block_barrier(Vote vote, bool predicate, Location where) {
  Block& block = *current->block;
  Barrier& barrier = block.barrier;
  if (barrier.waiting.empty()) {
    barrier.vote = vote;
    barrier.where = where;
  } else if (!(barrier.where == where)) {
    fail(where, "divergent barrier: %zu threads of the block wait in another one at %s:%u",
         barrier.waiting.size(), barrier.where.file, barrier.where.line);
  }
  barrier.votes += predicate;
  barrier.waiting.push_back(current);
  release_if_complete(block);
  wait_in("a barrier", where);
  return barrier.result;
}

void arrive_at_cluster_barrier(Location where) {
  if (current->has_arrived) {
    fail(where, "arrives twice at the cluster's barrier");
  }
  current->has_arrived = true;
}

void wait_at_cluster_barrier(Location where) {
  if (!current->has_arrived) {
    fail(where, "waits at the cluster's barrier without having arrived");
  }
  current->has_arrived = false;
  Cluster& cluster = *current->block->cluster;
  cluster.waiting.push_back(current);
  release_if_complete(cluster);
  wait_in("a barrier of the cluster", where);
}

Meeting& meet(unsigned mask, WarpOperation operation, std::uint64_t value, Location where) {
  Warp& warp = *current->warp;
  const unsigned self = 1u << current->lane;
  if ((mask & self) == 0) {
    fail(where, "lane %u executes a warp operation whose mask %08x does not name it", current->lane,
         mask);
  }
  Meeting& meeting = find_or_open_meeting(warp, mask, operation, where);
  meeting.lanes |= self;
  meeting.values[current->lane] = value;
  close_if_complete(warp, meeting);
  if (is_gathering(meeting)) {
    wait_in("a warp operation", where);
  }
  return meeting;
}

void leave(Meeting& meeting) {
  if (--meeting.to_leave == 0) {
    meeting.mask = 0;
  }
}

}  // namespace emulator
