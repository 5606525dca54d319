// Arbitrary int64 ids -> slots: the rank of an id among those of its image.
#pragma once

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "common/cpu/parts.h"

namespace discloss::cpu {

// Distinct ids, numbered in the order they are met. Open addressing; any int64 may be an id, so
// an empty place is told by its number and not by its id.
class IdTable {
 public:
  IdTable() : places_(64, Place{0, kEmpty}) {}

  const std::vector<int64_t>& ids() const { return ids_; }

  int32_t number_of(int64_t id) {
    size_t at = place_of(id);
    while (places_[at].number != kEmpty) {
      if (places_[at].id == id) {
        return places_[at].number;
      }
      at = (at + 1) & (places_.size() - 1);
    }
    const auto number = static_cast<int32_t>(ids_.size());
    places_[at] = {id, number};
    ids_.push_back(id);
    if (2 * ids_.size() > places_.size()) {
      grow();
    }
    return number;
  }

 private:
  static constexpr int32_t kEmpty = -1;
  struct Place {
    int64_t id;
    int32_t number;
  };

  // Fibonacci hashing: the high bits of the product depend on every bit of the id.
  size_t place_of(int64_t id) const {
    return (static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u >> 32) & (places_.size() - 1);
  }

  void grow() {
    places_.assign(2 * places_.size(), Place{0, kEmpty});
    for (size_t number = 0; number < ids_.size(); ++number) {
      size_t at = place_of(ids_[number]);
      while (places_[at].number != kEmpty) {
        at = (at + 1) & (places_.size() - 1);
      }
      places_[at] = {ids_[number], static_cast<int32_t>(number)};
    }
  }

  std::vector<Place> places_;
  std::vector<int64_t> ids_;
};

// The ids of one image, numbered in each part for itself.
struct ImageIds {
  int64_t instances;                        // K, without the ids to be ignored
  std::vector<std::vector<int32_t>> ranks;  // [parts], each: number of an id -> slot

  // Numbers -> slots, of one part.
  void rank(int64_t part, int32_t* slots, int64_t begin, int64_t end) const {
    const int32_t* rank = ranks[static_cast<size_t>(part)].data();
    for (int64_t i = begin; i < end; ++i) {
      slots[i] = rank[slots[i]];
    }
  }
};

namespace detail {

// The ids of a part and their numbers, of which there may be more.
struct PartIds {
  std::vector<int64_t> ids;
  std::vector<int32_t> numbers;  // of each of them
  int64_t numbers_count;         // all are less
};

// The functions below: slots = numbers of the ids; or null where only the ids are wanted.

// One look into a table for each run of equal ids.
template <typename label_t>
PartIds number_runs(const label_t* labels, int64_t begin, int64_t end, int32_t* slots) {
  IdTable table;
  for (int64_t i = begin; i < end;) {
    const label_t label = labels[i];
    const int32_t number = table.number_of(static_cast<int64_t>(label));
    const int64_t first = i;
    while (i + 4 <= end && labels[i] == label && labels[i + 1] == label && labels[i + 2] == label &&
           labels[i + 3] == label) {
      i += 4;
    }
    while (i < end && labels[i] == label) {
      ++i;
    }
    if (slots != nullptr) {
      std::fill(slots + first, slots + i, number);
    }
  }
  std::vector<int32_t> numbers(table.ids().size());
  std::iota(numbers.begin(), numbers.end(), 0);
  return {table.ids(), numbers, static_cast<int64_t>(numbers.size())};
}

// For ids that change from pixel to pixel: each has its distance from the least as its number, and
// nothing has to be looked up.
template <typename label_t>
PartIds number_singly(const label_t* labels, int64_t begin, int64_t end, int64_t least,
                      int64_t span, int32_t* slots) {
  std::vector<uint8_t> met(static_cast<size_t>(span));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t number = static_cast<int64_t>(labels[i]) - least;
    met[static_cast<size_t>(number)] = 1;
    if (slots != nullptr) {
      slots[i] = static_cast<int32_t>(number);
    }
  }
  PartIds part = {{}, {}, span};
  for (int64_t number = 0; number < span; ++number) {
    if (met[static_cast<size_t>(number)] != 0) {
      part.ids.push_back(least + number);
      part.numbers.push_back(static_cast<int32_t>(number));
    }
  }
  return part;
}

// Whether ids change from pixel to pixel, as far as the first ones tell.
template <typename label_t>
bool changes_often(const label_t* labels, int64_t begin, int64_t end) {
  const int64_t last = std::min<int64_t>(end, begin + 1024);
  int64_t changes = 0;
  for (int64_t i = begin + 1; i < last; ++i) {
    changes += labels[i] != labels[i - 1];
  }
  return 4 * changes > last - begin;
}

// The least id and the largest. Plain enough for a compiler to make vectors of it.
template <typename label_t>
std::pair<int64_t, int64_t> bounds_of(const label_t* labels, int64_t begin, int64_t end) {
  label_t least = labels[begin], most = labels[begin];
  for (int64_t i = begin; i < end; ++i) {
    least = labels[i] < least ? labels[i] : least;
    most = labels[i] > most ? labels[i] : most;
  }
  return {static_cast<int64_t>(least), static_cast<int64_t>(most)};
}

template <typename label_t>
PartIds number_part(const label_t* labels, int64_t begin, int64_t end, int32_t* slots) {
  if (changes_often(labels, begin, end)) {
    const auto [least, most] = bounds_of(labels, begin, end);
    const auto span = static_cast<uint64_t>(most) - static_cast<uint64_t>(least);
    // No longer than the pixels are worth, and short enough for the second-level cache.
    if (span < std::min<uint64_t>(1 << 16, static_cast<uint64_t>(end - begin))) {
      return number_singly(labels, begin, end, least, static_cast<int64_t>(span) + 1, slots);
    }
  }
  return number_runs(labels, begin, end, slots);
}

// All ids in ascending order, without those to be ignored.
inline std::vector<int64_t> distinct_ids(const std::vector<PartIds>& parts,
                                         c10::ArrayRef<int64_t> ignore_labels) {
  std::vector<int64_t> ids;
  for (const auto& part : parts) {
    ids.insert(ids.end(), part.ids.begin(), part.ids.end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (const int64_t ignored : ignore_labels) {
    const auto at = std::lower_bound(ids.begin(), ids.end(), ignored);
    if (at != ids.end() && *at == ignored) {
      ids.erase(at);
    }
  }
  return ids;
}

}  // namespace detail

// labels [pixels] of one image; slots [pixels] or null. ImageIds::rank makes slots of what this
// leaves there.
template <typename label_t>
ImageIds number_ids(const label_t* labels, int64_t pixels, int64_t parts,
                    c10::ArrayRef<int64_t> ignore_labels, int32_t* slots) {
  std::vector<detail::PartIds> found(static_cast<size_t>(parts));
  for_each_part(pixels, parts, [&](int64_t part, int64_t begin, int64_t end) {
    found[static_cast<size_t>(part)] = detail::number_part(labels, begin, end, slots);
  });
  const auto ids = detail::distinct_ids(found, ignore_labels);
  ImageIds result = {static_cast<int64_t>(ids.size()), {}};
  for (const auto& part : found) {
    std::vector<int32_t> ranks(static_cast<size_t>(part.numbers_count), -1);
    for (size_t i = 0; i < part.ids.size(); ++i) {
      const auto at = std::lower_bound(ids.begin(), ids.end(), part.ids[i]);
      if (at != ids.end() && *at == part.ids[i]) {
        ranks[static_cast<size_t>(part.numbers[i])] = static_cast<int32_t>(at - ids.begin());
      }
    }
    result.ranks.push_back(std::move(ranks));
  }
  return result;
}

}  // namespace discloss::cpu
