// The shared memory of a block, and the accesses of two of its warps that no barrier orders.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ptx {

class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes);

  // The bytes that a warp reads, writes or, as an atomic, both; a Fault if there are none such, or
  // if another warp has come there since the last barrier, one of the two to write.
  enum class Access { kRead, kWrite, kAtomic };
  unsigned char* at(std::uint64_t offset, std::size_t bytes, unsigned warp, Access access);

  // What was accessed before is ordered before what is accessed from now on.
  void pass_barrier() { ++barriers_; }

 private:
  // Who has come to four bytes last, and behind which barrier.
  struct Visit {
    std::uint32_t barriers = 0;
    std::uint32_t warp = 0;
  };
  struct Word {
    Visit write, read;
  };
  void check(std::size_t word, unsigned warp, Access access);

  std::vector<unsigned char> bytes_;
  std::vector<Word> words_;
  std::uint32_t barriers_ = 1;
};

}  // namespace ptx
