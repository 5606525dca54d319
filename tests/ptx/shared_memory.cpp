#include "shared_memory.h"

#include <string>

#include "ptx.h"

namespace ptx {
namespace {

constexpr std::size_t kWordBytes = 4;
constexpr unsigned char kUninitialised = 0xFF;  // NaN, -1
constexpr std::uint32_t kSeveralWarps = ~0u;

}  // namespace

SharedMemory::SharedMemory(std::size_t bytes)
    : bytes_(bytes, kUninitialised), words_((bytes + kWordBytes - 1) / kWordBytes) {}

unsigned char* SharedMemory::at(std::uint64_t offset, std::size_t bytes, unsigned warp,
                                Access access) {
  if (offset > bytes_.size() || bytes_.size() - offset < bytes) {
    throw Fault(std::to_string(bytes) + " bytes at " +
                std::to_string(static_cast<std::int64_t>(offset)) + " of the block's " +
                std::to_string(bytes_.size()) + " bytes of shared memory");
  }
  for (std::size_t word = offset / kWordBytes; word * kWordBytes < offset + bytes; ++word) {
    check(word, warp, access);
  }
  return bytes_.data() + offset;
}

void SharedMemory::check(std::size_t number, unsigned warp, Access access) {
  Word& word = words_[number];
  const auto is_others = [&](const Visit& visit) {
    return visit.barriers == barriers_ && visit.warp != warp;
  };
  if (access == Access::kAtomic) {
    return;
  }
  if (is_others(word.write) || (access == Access::kWrite && is_others(word.read))) {
    throw Fault("race: another warp comes to the same shared memory, at " +
                std::to_string(number * kWordBytes) + ", and no barrier is between them");
  }
  Visit& visit = access == Access::kWrite ? word.write : word.read;
  visit = {barriers_, is_others(visit) ? kSeveralWarps : warp};
}

}  // namespace ptx
