#include "access_counts.h"

#include <algorithm>
#include <array>

namespace ptx {
namespace {

bool counting = false;

template <typename Piece>
std::size_t distinct(std::vector<Piece>& pieces) {
  std::sort(pieces.begin(), pieces.end());
  pieces.erase(std::unique(pieces.begin(), pieces.end()), pieces.end());
  return pieces.size();
}

}  // namespace

void count_sectors(Counts& counts, const std::vector<Bits>& addresses, std::size_t bytes) {
  constexpr Bits kSector = 32;
  std::vector<Bits> sectors, places;
  for (const Bits address : addresses) {
    sectors.push_back(address / kSector);
    places.push_back(address);
  }
  counts.sectors += distinct(sectors);
  counts.least_sectors += (distinct(places) * bytes + kSector - 1) / kSector;
}

// Lanes in groups whose words fit into one wavefront, if no two lie in the same bank.
void count_wavefronts(Counts& counts, const std::vector<Bits>& addresses, std::size_t bytes) {
  constexpr std::size_t kBanks = 32, kWord = 4;
  const std::size_t group = kBanks * kWord / std::max(bytes, kWord);
  for (std::size_t first = 0; first < addresses.size(); first += group) {
    std::vector<Bits> words;
    for (std::size_t i = first; i < std::min(first + group, addresses.size()); ++i) {
      for (std::size_t at = 0; at < std::max(bytes, kWord); at += kWord) {
        words.push_back((addresses[i] + at) / kWord);
      }
    }
    distinct(words);
    std::array<unsigned, kBanks> of_bank = {};
    for (const Bits word : words) {
      ++of_bank[word % kBanks];
    }
    counts.wavefronts += *std::max_element(of_bank.begin(), of_bank.end());
    ++counts.least_wavefronts;
  }
}

void count_accesses(bool wanted) { counting = wanted; }
bool counts_accesses() { return counting; }

}  // namespace ptx
