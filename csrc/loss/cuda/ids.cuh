// Arbitrary int64 ids -> slots 0..K-1, the rank of an id among those of its image.
//
// Phases:
//   1. insert_ignored  the ignored ids enter the hash table of every image, marked
//   2. insert_ids      all other ids enter it, each once, and a list in order of arrival
//   3. rank_ids        the rank of each listed id, by counting the smaller ones, becomes its slot
//   4. assign_slots    every pixel receives the slot of its id
// Arrival order differs from run to run, ranks do not: nothing after phase 3 depends on the order
// of threads.
//
// Every phase needs the one before it to be complete: each is a kernel, or lies between barriers of
// all blocks (small_kernels.cuh).
#pragma once

#include <cstddef>

#include "common/cuda/dtypes.h"
#include "common/cuda/launching.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "launch.h"

namespace discloss::cuda {

using Key = unsigned long long;

constexpr Key kEmptyKey = ~Key{0};      // what memset(0xFF) leaves; also the id -1, see entry_of()
constexpr int32_t kIgnoredSlot = -2;    // of an ignored id
constexpr int32_t kIgnoredPixel = -1;   // slot of an ignored pixel
constexpr int kIgnoredPerLaunch = 256;  // ids passed by value: 2 KB of 4 KB of kernel arguments
constexpr int64_t kMinTableEntries = 32;

// Open addressing, one table an image, at most half full.
struct IdTable {
  int64_t capacity;     // C, a power of two
  int64_t limit;        // M, the length of the list
  int64_t clear_bytes;  // from keys on, to be set to 0xFF before phase 1
  Key* keys;            // [B, C + 1]
  int32_t* slots;       // [B, C + 1]
  int32_t* last;        // [B] index of the last listed id, -1 if none
  int64_t* ids;         // [B, M] in order of arrival
  int32_t* entries;     // [B, M] the table entry of each
};

struct IgnoredIds {
  int64_t ids[kIgnoredPerLaunch];
  int count;
};

// What all phases over the pixels work on.
struct IdPass {
  IdTable table;
  Images images;
  BlockRanges ranges;
  Labels labels;
};

__device__ __forceinline__ int64_t load_label(const Labels& labels, int64_t i) {
  switch (labels.type) {
    case LabelType::kBool:
      return static_cast<const uint8_t*>(labels.data)[i] != 0;
    case LabelType::kInt8:
      return static_cast<const int8_t*>(labels.data)[i];
    case LabelType::kInt16:
      return static_cast<const int16_t*>(labels.data)[i];
    case LabelType::kInt32:
      return static_cast<const int32_t*>(labels.data)[i];
    case LabelType::kInt64:
      return static_cast<const int64_t*>(labels.data)[i];
    case LabelType::kUInt8:
      return static_cast<const uint8_t*>(labels.data)[i];
    default:
      return static_cast<const uint16_t*>(labels.data)[i];
  }
}

// The finaliser of splitmix64: neighbouring ids land far apart.
__device__ __forceinline__ Key mix(Key x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// No id is a sentinel: the one that looks like an empty entry has entry C to itself, which holds 0
// once it is there.
__device__ __forceinline__ int64_t first_entry(Key key, int64_t capacity) {
  return key == kEmptyKey ? capacity : static_cast<int64_t>(mix(key) & (capacity - 1));
}

// Puts an id into its image's table. Returns its entry; *inserted tells whether this call put it
// there; -1 if the table is full. A stale read of an empty entry is corrected by the exchange.
__device__ inline int64_t insert(const IdTable& table, int64_t image, int64_t id, bool* inserted) {
  Key* keys = table.keys + image * (table.capacity + 1);
  const Key key = static_cast<Key>(id);
  const Key stored = key == kEmptyKey ? 0 : key;
  int64_t entry = first_entry(key, table.capacity);
  *inserted = false;
  for (int64_t probe = 0; probe <= table.capacity; ++probe) {
    Key found = __ldcg(keys + entry);
    if (found == kEmptyKey) {
      found = atomicCAS(keys + entry, kEmptyKey, stored);
      *inserted = found == kEmptyKey;
    }
    if (*inserted || found == stored) {
      return entry;
    }
    entry = (entry + 1) & (table.capacity - 1);
  }
  return -1;
}

// The slot of an id that is in the table; kIgnoredPixel for an ignored one.
__device__ inline int32_t find_slot(const IdTable& table, int64_t image, int64_t id) {
  const Key* keys = table.keys + image * (table.capacity + 1);
  const Key key = static_cast<Key>(id);
  int64_t entry = first_entry(key, table.capacity);
  if (key != kEmptyKey) {
    while (keys[entry] != key) {
      entry = (entry + 1) & (table.capacity - 1);
    }
  }
  const int32_t slot = table.slots[image * (table.capacity + 1) + entry];
  return slot < 0 ? kIgnoredPixel : slot;
}

// Before phase 1, where no memset has done it.
__device__ inline void clear_table(const IdTable& table) {
  auto* memory = reinterpret_cast<int32_t*>(table.keys);
  const auto words = table.clear_bytes / static_cast<int64_t>(sizeof(int32_t));
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words;
       i += step) {
    memory[i] = -1;
  }
}

// Phase 1. Grid-stride: a block owns an image.
__device__ inline void insert_ignored(const IdTable& table, int64_t images,
                                      const IgnoredIds& ignored) {
  for (int64_t b = blockIdx.x; b < images; b += gridDim.x) {
    for (int i = threadIdx.x; i < ignored.count; i += blockDim.x) {
      bool inserted;
      const int64_t entry = insert(table, b, ignored.ids[i], &inserted);
      if (inserted) {  // an id may be listed twice
        table.slots[b * (table.capacity + 1) + entry] = kIgnoredSlot;
      }
    }
  }
}

// Puts an id on its image's list when it is new. Beyond the limit the list stays as it is.
__device__ inline void enlist(const IdTable& table, int64_t image, int64_t id, bool must_fit) {
  if (!must_fit && __ldcg(table.last + image) >= table.limit) {
    return;  // more than can be counted is known already
  }
  bool inserted;
  const int64_t entry = insert(table, image, id, &inserted);
  if (!inserted) {
    return;
  }
  const int32_t position = atomicAdd(table.last + image, 1) + 1;
  device_assert(position < table.limit || !must_fit,
                "discloss_cuda: an image has more than max_instances instances\n");
  if (position < table.limit) {
    table.ids[image * table.limit + position] = id;
    table.entries[image * table.limit + position] = static_cast<int32_t>(entry);
  }
}

// Phase 2. A warp reads 32 neighbouring labels, and of a run of equal ones only the first goes to
// the table.
__device__ inline void insert_ids(const IdPass& pass, bool must_fit) {
  const int lane = threadIdx.x % 32;
  for_each_image(pass.images, pass.ranges, [&](const ImageRange& range) {
    const int64_t begin = pass.images.begin(range.image);
    // The loop bound is the same for all lanes of a warp: they stay together for the shuffle.
    for (int64_t first = range.begin; first < range.end; first += blockDim.x) {
      const int64_t i = first + threadIdx.x;
      const int64_t id = i < range.end ? load_label(pass.labels, begin + i) : 0;
      const int64_t previous = __shfl_up_sync(0xffffffffu, id, 1);
      if (i < range.end && (lane == 0 || id != previous)) {
        enlist(pass.table, range.image, id, must_fit);
      }
    }
  });
}

// Phase 3. Grid-stride: a warp owns a listed id, and its lanes compare the others. instances [B]
// receives K.
__device__ inline void rank_ids(const IdTable& table, int64_t images, int64_t* instances) {
  const int lane = threadIdx.x % 32;
  const int64_t rows = table.limit > 0 ? table.limit : 1;
  for (int64_t row = first_warp(); row < images * rows; row += all_warps()) {
    const int64_t image = row / rows, position = row % rows;
    const int64_t count = table.last[image] + 1;
    if (position == 0 && lane == 0) {
      instances[image] = count;
    }
    const int64_t* ids = table.ids + image * table.limit;
    const int64_t id = position < count ? ids[position] : 0;
    int32_t rank = 0;
    for (int64_t first = 0; position < count && first < count; first += 32) {
      const int64_t other = first + lane;
      rank += __popc(__ballot_sync(0xffffffffu, other < count && ids[other] < id));
    }
    if (position < count && lane == 0) {
      const int32_t entry = table.entries[image * table.limit + position];
      table.slots[image * (table.capacity + 1) + entry] = rank;
    }
  }
}

// Phase 4. slots [pixels]
__device__ inline void assign_slots(const IdPass& pass, int32_t* slots) {
  for_each_image(pass.images, pass.ranges, [&](const ImageRange& range) {
    const int64_t begin = pass.images.begin(range.image);
    for (int64_t i = range.begin + threadIdx.x; i < range.end; i += blockDim.x) {
      slots[begin + i] = find_slot(pass.table, range.image, load_label(pass.labels, begin + i));
    }
  });
}

// --- on the host (ids.cu) ------------------------------------------------------------------------

IdTable take_table(Workspace& workspace, int64_t images, int64_t limit, int64_t ignore_count);

// As many of the ids from number `first` on as a launch takes.
IgnoredIds ignored_ids(const IgnoreLabels& ignore, int64_t first);

// pixels: of all images
IdPass id_pass(const Device& device, const IdTable& table, const Images& images, int64_t pixels,
               const Labels& labels);

// All phases: a slot for every pixel, slots [pixels], and the numbers of instances [B].
cudaError_t launch_ids(const IdPass& pass, const IgnoreLabels& ignore, int32_t* slots,
                       int64_t* instances, const Queue& queue);

}  // namespace discloss::cuda
