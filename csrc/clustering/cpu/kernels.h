// The loops of the clustering as its driver calls them: one table of functions for each instruction
// set. Plain data only, no code: this header is seen by every kernels_*.cpp (common/cpu/simd.h).
//
// D channels . K modes . a block is kBlock points side by side
#pragma once

#include <cstdint>

#include "common/cpu/pixels.h"

namespace discloss::cpu::clustering {

constexpr int64_t kBlock = 16;

// Points in blocks: channel c of point i is values[(i / kBlock * channels + c) * kBlock + i %
// kBlock]. A tile is one block.
struct Columns {
  const float* values;
  int64_t channels;
};

// Writes a block of pixels to tile [D, kBlock], as float32. from: channel 0 of its first pixel;
// end: behind the last element that may be read.
using ReadBlock = void(const void* from, const void* end, int64_t channel_stride,
                       int64_t pixel_stride, int64_t channels, float* tile);

// The pixels of an image as they lie in memory.
struct ImageView {
  ReadBlock* read;
  const char* embeddings;  // channel 0 of pixel 0
  const char* end;
  int64_t element_bytes;
  int64_t channel_stride;  // in elements; one of the two is 1
  int64_t pixel_stride;
  int64_t channels;
  int64_t pixels;          // N
  int64_t width;           // pixels of a row; 0: there are no rows
  const int32_t* classes;  // [N] numbers of classes; null: there is one
};

// The modes of one class, sorted by one channel, the widest: a mode nearer than d to a point is
// nearer than d in that channel.
struct ModeColumns {
  Columns columns;
  const int32_t* mode;  // [padded] number of the mode in each column
  const float* key;     // [count] the values of the sorted channel
  int64_t key_channel;
  int64_t count;
};

// What the pixels of a round are assigned to.
struct Modes {
  const float* rows;          // [K, D]
  const float* accept;        // [K]  nearer (squared) than this to mode k, k is the nearest
  const int32_t* mode_class;  // [K]
  const ModeColumns* of_class;
  float near;    // squared 2.02 v
  float assign;  // squared d
  float wide;    // squared d + v: of what is beyond nothing is asked
  float reach;   // a little more than d + v
  double share;  // of distances, for what is rounded: below 1
};

// A range of words of 64 pixels to assign, and what comes of it.
struct AssignPass {
  uint64_t* todo;   // [N / 64] bits of pixels to assign; of those assigned they are cleared
  int32_t* labels;  // [N]  base + k + 1 is written to pixels of mode k
  int32_t base;     // labels up to it are of earlier rounds
  int64_t first_word;
  int64_t last_word;
  int64_t* support;     // [K]  pixels nearer than `near` are added
  float* tile;          // [D, kBlock]
  float* point;         // [D]
  float* lonely_point;  // [D]
  bool check_finite;    // whether pixels may be infinite or NaN: those keep their bits
  bool found_infinite;
};

// Of a point: what may be its parent.
struct Denser {
  int32_t density;
  int32_t index;   // of the point
  float square;    // of the nearest denser point so far
  int32_t parent;  // its index; the point's own: none
};

struct ClusterKernels {
  ReadBlock* read_float;
  ReadBlock* read_double;
  ReadBlock* read_half;
  ReadBlock* read_bfloat16;

  int64_t (*count_bits)(const uint64_t* bits, int64_t words);
  // Writes the numbers of every step-th pixel whose bit is set.
  void (*every_bit)(const uint64_t* bits, int64_t words, int64_t step, int64_t* pixels);

  void (*assign)(const ImageView&, const Modes&, AssignPass&);
  // Clears the bits of pixels that are not finite, and returns their number. tile: [D, kBlock]
  int64_t (*drop_infinite)(const ImageView&, uint64_t* bits, int64_t first_word, int64_t last_word,
                           float* tile);

  // Of the points begin <= i < end those nearer than sqrt(limit) to q [D]: the first, or -1.
  int64_t (*first_within)(const Columns&, int64_t begin, int64_t end, const float* q, float limit);
  // The squared distances of the blocks from begin, a whole one, to end: squares [i - begin].
  void (*distances)(const Columns&, int64_t begin, int64_t end, const float* q, float* squares);
  // Writes the points nearer than radius[i] + reach to found, and returns their number. radius:
  // whole blocks.
  int64_t (*within_radii)(const Columns&, const float* radius, int64_t begin, int64_t end,
                          const float* q, float reach, int32_t* found);
  // sum int((h2 - s) slope) over s < h2; each term is added to densities [i] too, where they are
  // given.
  int64_t (*density)(const Columns&, int64_t begin, int64_t end, const float* q, float h2,
                     float slope, int32_t* densities);
  // The nearest of the denser points, which have densities and indices.
  void (*nearest_denser)(const Columns&, const int32_t* density, const int32_t* index,
                         int64_t begin, int64_t end, const float* q, Denser&);
};

namespace baseline {
extern const ClusterKernels kClusterKernels;
}
namespace avx2 {
extern const ClusterKernels kClusterKernels;
}
namespace avx512 {
extern const ClusterKernels kClusterKernels;
}

}  // namespace discloss::cpu::clustering
