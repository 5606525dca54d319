#include "grid.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "access_counts.h"

namespace ptx {
namespace {

constexpr Bits kUninitialised = 0xFFF7'FFF7'FFF7'FFF7;  // NaN in every type of float

Bits special_value(const std::string& name, const Block& block, unsigned thread) {
  return name == "%tid.x"      ? thread
         : name == "%laneid"   ? thread % kWarpSize
         : name == "%ctaid.x"  ? block.number
         : name == "%nctaid.x" ? block.launch->blocks
                               : block.launch->threads;
}

}  // namespace

Grid::Grid(const Launch& launch, unsigned resident_blocks, std::uint64_t seed,
           std::uint64_t most_turns)
    : launch_(launch),
      code_(launch.kernel.code),
      resident_blocks_(resident_blocks),
      shuffled_(!counts_accesses()),
      random_(seed),
      turns_left_(most_turns) {
  constexpr std::size_t kPatience[] = {8, 200, 4000};  // the last: warps run far ahead of others
  patience_ = shuffled_ ? kPatience[below(std::size(kPatience))] : 4000;
  to_start_.resize(launch.blocks / launch.cluster);
  std::iota(to_start_.rbegin(), to_start_.rend(), 0u);
  if (shuffled_) {
    std::shuffle(to_start_.begin(), to_start_.end(), random_);
  }
}

std::string Grid::run() {
  start_blocks();
  while (!blocks_.empty()) {
    const std::size_t first = shuffled_ ? below(blocks_.size()) : 0;
    std::size_t number = first;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      number = (first + i) % blocks_.size();
      if (give_turn_to(*blocks_[number])) {
        break;
      }
      if (i + 1 == blocks_.size()) {
        return deadlock();
      }
    }
    if (blocks_[number]->alive == 0) {
      blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(number));
      start_blocks();
    }
  }
  return "";
}

// --- blocks and warps ----------------------------------------------------------------------------

void Grid::start_blocks() {
  while (!to_start_.empty() && (blocks_.empty() || blocks_.size() < resident_blocks_)) {
    const auto cluster = std::make_shared<Cluster>();
    for (unsigned i = 0; i < launch_.cluster; ++i) {
      blocks_.push_back(make_block(to_start_.back() * launch_.cluster + i, cluster));
    }
    to_start_.pop_back();
  }
}

std::unique_ptr<Block> Grid::make_block(unsigned number,
                                        const std::shared_ptr<Cluster>& cluster) const {
  auto block = std::make_unique<Block>();
  block->number = number;
  block->launch = &launch_;
  block->cluster = cluster;
  block->shared = SharedMemory(launch_.shared_bytes);
  block->alive = launch_.threads;
  cluster->alive += launch_.threads;
  block->warps.resize((launch_.threads + kWarpSize - 1) / kWarpSize);
  for (std::size_t i = 0; i < block->warps.size(); ++i) {
    block->warps[i].block = block.get();
    start_warp(block->warps[i], static_cast<unsigned>(i) * kWarpSize);
  }
  return block;
}

void Grid::start_warp(Warp& warp, unsigned first_thread) const {
  const Kernel& kernel = launch_.kernel;
  warp.bits.assign(static_cast<std::size_t>(kernel.registers) * kWarpSize, kUninitialised);
  for (const auto& [number, value] : kernel.constants) {
    std::fill_n(warp[number], kWarpSize, value);
  }
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    const bool exists = first_thread + lane < launch_.threads;
    warp.alive |= static_cast<Mask>(exists) << lane;
    warp.state[lane] = exists ? State::kRunnable : State::kEnded;
    for (const auto& [number, name] : kernel.specials) {
      warp[number][lane] = special_value(name, *warp.block, first_thread + lane);
    }
  }
}

// --- whose turn it is ----------------------------------------------------------------------------

// False if no warp of it can run.
bool Grid::give_turn_to(Block& block) {
  const std::size_t count = block.warps.size(), first = shuffled_ ? below(count) : 0;
  for (std::size_t i = 0; i < count; ++i) {
    Warp& warp = block.warps[(first + i) % count];
    if (warp.lanes_that(State::kRunnable) != 0) {
      try {
        give_turn_to(warp);
      } catch (const Fault& fault) {
        throw Fault(place(warp, at_) + ": " + fault.what());
      }
      return true;
    }
  }
  return false;
}

void Grid::give_turn_to(Warp& warp) {
  Group group = pick_group(warp);
  at_ = group.at;
  if (turns_left_-- == 0) {
    throw Fault("the kernel does not end");
  }
  std::size_t left = shuffled_ ? 1 + below(patience_) : patience_;
  while (group.at < group.next_of_others && left-- > 0) {
    if (!step(group)) {
      return;
    }
  }
  set_next(warp, group.lanes, group.at);
}

// The lanes that are furthest behind, so that lanes that parted meet again; now and then others.
Grid::Group Grid::pick_group(Warp& warp) {
  const Mask runnable = warp.lanes_that(State::kRunnable);
  int at = warp.next[static_cast<unsigned>(std::countr_zero(runnable))];
  if (one_in(4)) {
    std::size_t skipped = below(kWarpSize);
    for_each_lane(runnable, [&](unsigned lane) { at = skipped-- == 0 ? warp.next[lane] : at; });
  } else {
    for_each_lane(runnable, [&](unsigned lane) { at = std::min(at, warp.next[lane]); });
  }
  Group group = {warp, at, 0, static_cast<int>(code_.size())};
  for_each_lane(runnable, [&](unsigned lane) {
    if (warp.next[lane] == at) {
      group.lanes |= Mask{1} << lane;
    } else if (warp.next[lane] > at) {
      group.next_of_others = std::min(group.next_of_others, warp.next[lane]);
    }
  });
  return group;
}

// --- one instruction -----------------------------------------------------------------------------

Mask Grid::predicated(const Group& group, const Instruction& instruction) const {
  if (instruction.predicate == Instruction::kNone) {
    return group.lanes;
  }
  const Bits* values = group.warp[instruction.predicate];
  Mask result = 0;
  for_each_lane(group.lanes, [&](unsigned lane) {
    result |= static_cast<Mask>(((values[lane] & 1) != 0) != instruction.is_negated) << lane;
  });
  return result;
}

bool Grid::step(Group& group) {
  at_ = group.at;
  const Instruction& instruction = code_[static_cast<std::size_t>(group.at)];
  const Mask lanes = predicated(group, instruction);
  ++instruction.counts.warps;
  instruction.counts.lanes += count_of(lanes);
  switch (instruction.kind) {
    case Kind::kPlain:
      if (lanes != 0) {
        instruction.execute(group.warp, instruction, lanes);
      }
      ++group.at;
      return true;
    case Kind::kBranch:
      return branch(group, instruction, lanes);
    case Kind::kExit:
      set_next(group.warp, group.lanes & ~lanes, group.at + 1);
      end(group.warp, lanes);
      return false;
    case Kind::kTrap:
      if (lanes != 0) {
        throw Fault("trap " + group.warp.block->printed);
      }
      ++group.at;
      return true;
    case Kind::kBarrier:
      arrive_at_barrier(group, instruction);
      return false;
    case Kind::kClusterArrive:
      arrive_at_cluster_barrier(group);
      return false;
    case Kind::kClusterWait:
      wait_at_cluster_barrier(group);
      return false;
    case Kind::kMeeting:
      come_to_meeting(group, lanes);
      return false;
  }
  return false;
}

// A group that goes back lets others have a turn: it may wait for them.
bool Grid::branch(Group& group, const Instruction& instruction, Mask taken) {
  const Mask others = group.lanes & ~taken;
  if (taken == 0) {
    ++group.at;
    return true;
  }
  if (others == 0) {
    const bool is_ahead = instruction.target > group.at;
    group.at = instruction.target;
    const bool goes_on = is_ahead || group.next_of_others == static_cast<int>(code_.size());
    if (!goes_on) {
      set_next(group.warp, group.lanes, group.at);
    }
    return goes_on;
  }
  set_next(group.warp, taken, instruction.target);
  set_next(group.warp, others, group.at + 1);
  return false;
}

// --- reports -------------------------------------------------------------------------------------

std::string Grid::place(const Warp& warp, int at) const {
  const Instruction& instruction = code_[static_cast<std::size_t>(at)];
  return launch_.kernel.name + ", block " + std::to_string(warp.block->number) + ", warp " +
         std::to_string(warp.number()) + ", line " + std::to_string(instruction.line) + " `" +
         instruction.text + "`";
}

std::string Grid::deadlock() const {
  std::map<std::string, int> threads;
  for (const auto& block : blocks_) {
    for (const Warp& warp : block->warps) {
      for_each_lane(warp.alive, [&](unsigned lane) {
        const Instruction& instruction = code_[static_cast<std::size_t>(warp.next[lane])];
        ++threads["line " + std::to_string(instruction.line) + " `" + instruction.text + "`"];
      });
    }
  }
  std::string message = launch_.kernel.name + ": deadlock:";
  for (const auto& [where, count] : threads) {
    message += " " + std::to_string(count) + " threads wait in " + where + ";";
  }
  return message;
}

}  // namespace ptx
