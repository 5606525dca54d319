// Arbitrary int64 ids -> slots: the rank of an id among those of its image.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <vector>

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

// The first of `count` equal parts of n; part p is boundary(p) .. boundary(p + 1). Whole cache
// lines of slots, so that two threads never write to the same one.
inline int64_t part_boundary(int64_t n, int64_t parts, int64_t part) {
  return std::min(n, ((n + parts - 1) / parts + 63) / 64 * 64 * part);
}

// Labels of one image.
template <typename label_t>
class IdNumbering {
 public:
  IdNumbering(const label_t* labels, int64_t pixels, int64_t parts)
      : labels_(labels), pixels_(pixels), parts_(parts), tables_(static_cast<size_t>(parts)) {}

  // Numbers the ids part by part. slots [pixels], or null where only the count is wanted.
  void find_ids(int32_t* slots) {
    at::parallel_for(0, parts_, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        find_ids_of_part(part, slots);
      }
    });
  }

  // The image's ids in ascending order, without those to be ignored.
  std::vector<int64_t> distinct_ids(c10::ArrayRef<int64_t> ignore_labels) const {
    std::vector<int64_t> ids;
    for (const auto& table : tables_) {
      ids.insert(ids.end(), table.ids().begin(), table.ids().end());
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

  // slots: numbers of find_ids -> ranks in ids, -1 where the id is not among them.
  void rank(const std::vector<int64_t>& ids, int32_t* slots) const {
    at::parallel_for(0, parts_, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        rank_part(part, ids, slots);
      }
    });
  }

 private:
  int64_t begin_of(int64_t part) const { return part_boundary(pixels_, parts_, part); }

  void find_ids_of_part(int64_t part, int32_t* slots) {
    IdTable table;
    const int64_t end = begin_of(part + 1);
    for (int64_t i = begin_of(part); i < end;) {
      const label_t label = labels_[i];
      const int32_t number = table.number_of(static_cast<int64_t>(label));
      for (; i < end && labels_[i] == label; ++i) {
        if (slots != nullptr) {
          slots[i] = number;
        }
      }
    }
    tables_[static_cast<size_t>(part)] = std::move(table);
  }

  void rank_part(int64_t part, const std::vector<int64_t>& ids, int32_t* slots) const {
    std::vector<int32_t> ranks;
    for (const int64_t id : tables_[static_cast<size_t>(part)].ids()) {
      const auto at = std::lower_bound(ids.begin(), ids.end(), id);
      const bool found = at != ids.end() && *at == id;
      ranks.push_back(found ? static_cast<int32_t>(at - ids.begin()) : -1);
    }
    for (int64_t i = begin_of(part); i < begin_of(part + 1); ++i) {
      slots[i] = ranks[static_cast<size_t>(slots[i])];
    }
  }

  const label_t* labels_;
  int64_t pixels_;
  int64_t parts_;
  std::vector<IdTable> tables_;  // [parts]
};

}  // namespace discloss::cpu
