// Runs a grid warp by warp, in a random legal order.
#pragma once

#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "ptx.h"

namespace ptx {

inline void set_state(Warp& warp, Mask lanes, State state) {
  for_each_lane(lanes, [&](unsigned lane) { warp.state[lane] = state; });
}

inline void set_next(Warp& warp, Mask lanes, int next) {
  for_each_lane(lanes, [&](unsigned lane) { warp.next[lane] = next; });
}

inline unsigned count_of(Mask lanes) { return static_cast<unsigned>(std::popcount(lanes)); }

class Grid {
 public:
  // `seed` decides the order, unless accesses are counted (access_counts.h). A grid that executes
  // more than `most_turns` turns of warps is taken to run without end.
  Grid(const Launch& launch, unsigned resident_blocks, std::uint64_t seed,
       std::uint64_t most_turns);

  // An empty string, or what the kernel did wrong and where.
  std::string run();

 private:
  // Lanes of a warp that are at the same instruction.
  struct Group {
    Warp& warp;
    int at;
    Mask lanes;
    int next_of_others;  // where they may meet lanes that are ahead of them
  };

  std::size_t below(std::size_t end) { return random_() % end; }
  bool one_in(std::size_t n) { return shuffled_ && below(n) == 0; }

  void start_blocks();
  std::unique_ptr<Block> make_block(unsigned number, const std::shared_ptr<Cluster>& cluster) const;
  void start_warp(Warp& warp, unsigned first_thread) const;

  bool give_turn_to(Block& block);
  void give_turn_to(Warp& warp);
  Group pick_group(Warp& warp);
  bool step(Group& group);  // false: the turn ends
  Mask predicated(const Group& group, const Instruction& instruction) const;
  bool branch(Group& group, const Instruction& instruction, Mask taken);

  void arrive_at_barrier(const Group& group, const Instruction& instruction);
  void arrive_at_cluster_barrier(const Group& group);
  void wait_at_cluster_barrier(const Group& group);
  void come_to_meeting(const Group& group, Mask lanes);
  void end(Warp& warp, Mask lanes);
  void release_if_complete(Block& block);
  void release_if_complete(Cluster& cluster);
  void hold_meetings(Warp& warp, int at);

  std::string place(const Warp& warp, int at) const;
  std::string deadlock() const;

  const Launch& launch_;
  const std::vector<Instruction>& code_;
  const unsigned resident_blocks_;
  const bool shuffled_;
  std::mt19937_64 random_;
  std::size_t patience_;  // instructions of a turn, at most
  std::uint64_t turns_left_;
  std::vector<unsigned> to_start_;  // clusters, the next one last
  std::vector<std::unique_ptr<Block>> blocks_;
  int at_ = 0;  // the instruction that runs
};

}  // namespace ptx
