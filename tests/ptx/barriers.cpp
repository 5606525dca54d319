// Where threads wait for each other: the barriers of a block and of a cluster, and the meetings of
// the lanes of a warp.
#include <set>

#include "grid.h"

namespace ptx {

void Grid::arrive_at_barrier(const Group& group, const Instruction& instruction) {
  Block& block = *group.warp.block;
  if (instruction.from[0] != Instruction::kNone) {
    for_each_lane(group.lanes, [&](unsigned lane) {
      block.any_vote |= (group.warp[instruction.from[0]][lane] & 1) != 0;
    });
  }
  set_next(group.warp, group.lanes, group.at);
  set_state(group.warp, group.lanes, State::kAtBarrier);
  block.waiting += count_of(group.lanes);
  release_if_complete(block);
}

// All lanes of a warp must wait at the same barrier, those of other warps need not.
void Grid::release_if_complete(Block& block) {
  if (block.waiting == 0 || block.waiting < block.alive) {
    return;
  }
  for (Warp& warp : block.warps) {
    const Mask waiting = warp.lanes_that(State::kAtBarrier);
    int at = -1;
    for_each_lane(waiting, [&](unsigned lane) {
      if (at >= 0 && warp.next[lane] != at) {
        throw Fault("a part of a warp waits at another barrier, in line " +
                    std::to_string(code_[static_cast<std::size_t>(warp.next[lane])].line));
      }
      at = warp.next[lane];
    });
    if (waiting == 0) {
      continue;
    }
    if (const int to = code_[static_cast<std::size_t>(at)].to[0]; to != Instruction::kNone) {
      for_each_lane(waiting, [&](unsigned lane) { warp[to][lane] = block.any_vote; });
    }
    set_next(warp, waiting, at + 1);
    set_state(warp, waiting, State::kRunnable);
  }
  block.waiting = 0;
  block.any_vote = false;
  block.shared.pass_barrier();
}

void Grid::arrive_at_cluster_barrier(const Group& group) {
  Cluster& cluster = *group.warp.block->cluster;
  for_each_lane(group.lanes, [&](unsigned lane) {
    if (group.warp.awaited_phase[lane] != 0) {
      throw Fault("arrives twice at the cluster's barrier");
    }
    group.warp.awaited_phase[lane] = cluster.phase + 1;
  });
  set_next(group.warp, group.lanes, group.at + 1);
  cluster.arrived += count_of(group.lanes);
  release_if_complete(cluster);
}

void Grid::wait_at_cluster_barrier(const Group& group) {
  const Cluster& cluster = *group.warp.block->cluster;
  set_next(group.warp, group.lanes, group.at);
  for_each_lane(group.lanes, [&](unsigned lane) {
    std::uint64_t& awaited = group.warp.awaited_phase[lane];
    if (awaited == 0) {
      throw Fault("waits at the cluster's barrier without having arrived");
    }
    if (awaited <= cluster.phase) {
      awaited = 0;
      ++group.warp.next[lane];
    } else {
      group.warp.state[lane] = State::kAtClusterBarrier;
    }
  });
}

void Grid::release_if_complete(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.alive) {
    return;
  }
  cluster.arrived = 0;
  ++cluster.phase;
  for (const auto& block : blocks_) {
    if (block->cluster.get() == &cluster) {
      block->shared.pass_barrier();
      for (Warp& warp : block->warps) {
        set_state(warp, warp.lanes_that(State::kAtClusterBarrier), State::kRunnable);
      }
    }
  }
}

void Grid::come_to_meeting(const Group& group, Mask lanes) {
  set_next(group.warp, group.lanes & ~lanes, group.at + 1);
  set_next(group.warp, lanes, group.at);
  set_state(group.warp, lanes, State::kAtMeeting);
  hold_meetings(group.warp, group.at);
}

// A meeting is held when all lanes that its mask names and that have not ended are there.
void Grid::hold_meetings(Warp& warp, int at) {
  const Instruction& instruction = code_[static_cast<std::size_t>(at)];
  Mask here = 0;
  for_each_lane(warp.lanes_that(State::kAtMeeting),
                [&](unsigned lane) { here |= static_cast<Mask>(warp.next[lane] == at) << lane; });
  while (here != 0) {
    const Bits* masks = warp[instruction.from[kMeetingMask]];
    const auto named = static_cast<Mask>(masks[std::countr_zero(here)]);
    Mask group = 0;
    for_each_lane(here, [&](unsigned lane) {
      group |= static_cast<Mask>(static_cast<Mask>(masks[lane]) == named) << lane;
    });
    if ((group & ~named) != 0) {
      throw Fault("a lane comes to a warp operation whose mask does not name it");
    }
    here &= ~group;
    if ((named & warp.alive & ~group) == 0) {
      at_ = at;
      instruction.execute(warp, instruction, group);
      set_next(warp, group, at + 1);
      set_state(warp, group, State::kRunnable);
    }
  }
}

void Grid::end(Warp& warp, Mask lanes) {
  set_state(warp, lanes, State::kEnded);
  warp.alive &= ~lanes;
  warp.block->alive -= count_of(lanes);
  warp.block->cluster->alive -= count_of(lanes);
  release_if_complete(*warp.block);
  release_if_complete(*warp.block->cluster);
  std::set<int> meetings;
  for_each_lane(warp.lanes_that(State::kAtMeeting),
                [&](unsigned lane) { meetings.insert(warp.next[lane]); });
  for (const int at : meetings) {
    hold_meetings(warp, at);
  }
}

}  // namespace ptx
