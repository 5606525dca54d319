// Steps 5 and 6: each pixel to its nearest mode. A pixel nearer to a mode than half of the distance
// between that mode and the next is nearest to it (Modes::accept), so the mode of the pixel before
// and those of the row above are tried first; what they do not take is searched. Around a pixel
// that is so far from all modes that its neighbours are too, nothing is searched.
#pragma once

#include "read_block.h"

namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET {

// The nearest mode of q (ties: the lower number) and its squared distance; -1 if none is nearer
// than all.wide.
inline int32_t nearest_mode(const Modes& all, const ModeColumns& modes, const float* q,
                            float& square) {
  const float low = q[modes.key_channel] - all.reach, high = q[modes.key_channel] + all.reach;
  int64_t begin = 0, end = modes.count;
  for (int64_t length = modes.count; length > 0;) {  // the first key that is not below `low`
    const int64_t half = length / 2;
    const bool below = modes.key[begin + half] < low;
    begin = below ? begin + half + 1 : begin;
    length = below ? length - half - 1 : half;
  }
  int32_t nearest = -1;
  square = all.wide;
  for (int64_t b = begin / kBlock * kBlock; b < end && !(modes.key[b] > high); b += kBlock) {
    Block s;
    // Equal ones as well, of which the number decides.
    const Block limit = splat(nearest < 0 ? square : std::nextafter(square, INFINITY));
    uint32_t lanes = squares_below(modes.columns, b, q, limit, s);
    if (lanes == 0) {
      continue;
    }
    alignas(64) float squares[kBlock];
    store_block(squares, s);
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      const int32_t mode = modes.mode[b + lane];
      if (squares[lane] < square || (squares[lane] == square && nearest >= 0 && mode < nearest)) {
        square = squares[lane];
        nearest = mode;
      }
    }
    if (nearest >= 0 && square < all.accept[nearest]) {
      break;
    }
  }
  return nearest;
}

// Of the pixels `lanes` of a tile [channels, kBlock] those that are finite.
DISCLOSS_INLINE uint32_t finite(const float* tile, int64_t channels, uint32_t lanes) {
  const Block infinity = splat(INFINITY);
  const Block minus_infinity = splat(-INFINITY);
  for (int64_t c = 0; c < channels; ++c) {
    const Block x = load_block(tile + c * kBlock);
    lanes &= less(x, infinity) & less(minus_infinity, x);
  }
  return lanes;
}

DISCLOSS_INLINE void read_tile(const ImageView& image, int64_t first, float* tile) {
  image.read(image.embeddings + first * image.pixel_stride * image.element_bytes, image.end,
             image.channel_stride, image.pixel_stride, image.channels, tile);
}

// Clears the bits of pixels that are not finite; how many there were.
inline int64_t drop_infinite(const ImageView& image, uint64_t* bits, int64_t first_word,
                             int64_t last_word, float* tile) {
  int64_t dropped = 0;
  for (int64_t word = first_word; word < last_word; ++word) {
    for (int shift = 0; shift < 64; shift += kBlock) {
      const uint32_t lanes = static_cast<uint32_t>(bits[word] >> shift) & 0xffffu;
      if (lanes != 0) {
        read_tile(image, word * 64 + shift, tile);
        const uint32_t infinite = lanes & ~finite(tile, image.channels, lanes);
        bits[word] &= ~(static_cast<uint64_t>(infinite) << shift);
        dropped += __builtin_popcount(infinite);
      }
    }
  }
  return dropped;
}

// A block of pixels in the course of being assigned.
struct BlockPass {
  const ImageView& image;
  const Modes& modes;
  AssignPass& pass;
  int32_t candidate = -1;  // the mode of the last pixel that was assigned
  uint32_t sound = 0;      // pixels of the tile that are known to be finite
  float lonely = 0;        // pixels nearer (squared) than this to pass.lonely_point have no mode

  // Pixels of `todo` that mode k takes for certain; they are done.
  DISCLOSS_INLINE uint32_t take(int32_t k, int64_t first, uint32_t todo) {
    const Columns tile = {pass.tile, image.channels};
    const Block s = squares_from(tile, 0, modes.rows + k * image.channels);
    const uint32_t taken = less(s, splat(modes.accept[k])) & todo;
    sound |= less(s, splat(INFINITY));
    if (taken == 0) {
      return 0;
    }
    pass.support[k] += __builtin_popcount(taken & less(s, splat(modes.near)));
    int32_t* labels = pass.labels + first;
    const int32_t label = pass.base + k + 1;
    if (taken == 0xffffu) {
      for (int i = 0; i < kBlock; ++i) {
        labels[i] = label;
      }
    } else {
      for (uint32_t lanes = taken; lanes != 0; lanes &= lanes - 1) {
        labels[__builtin_ctz(lanes)] = label;
      }
    }
    candidate = k;
    return taken;
  }

  // The modes of the row above, three at most.
  DISCLOSS_INLINE uint32_t take_from_above(int64_t first, uint32_t todo) {
    const int32_t* above = pass.labels + first - image.width;
    int32_t last = candidate;
    for (int tries = 0; todo != 0 && tries < 3; ++tries) {
      int32_t k = -1;
      for (uint32_t lanes = todo; lanes != 0 && k < 0; lanes &= lanes - 1) {
        const int32_t mode = above[__builtin_ctz(lanes)] - 1 - pass.base;
        k = mode >= 0 && mode != last ? mode : -1;
      }
      if (k < 0) {
        break;
      }
      last = k;
      todo &= ~take(k, first, todo);
    }
    return todo;
  }

  // pass.point has no mode, the nearest being so far. The pixels of the tile of which that says the
  // same: for true distances |q - mode| >= |point - mode| - |q - point|, and modes.share has room
  // for what is rounded.
  DISCLOSS_INLINE uint32_t remember_lonely(float square) {
    const double radius = std::sqrt(static_cast<double>(square)) * modes.share -
                          std::sqrt(static_cast<double>(modes.assign)) / modes.share;
    lonely = radius > 0 ? static_cast<float>(radius * radius * modes.share) : 0;
    if (!(lonely > 0)) {
      return 0;
    }
    std::memcpy(pass.lonely_point, pass.point, static_cast<size_t>(image.channels) * sizeof(float));
    return less(squares_from({pass.tile, image.channels}, 0, pass.point), splat(lonely));
  }

  // Pixels of one class; those that have a mode.
  inline uint32_t assign(const ModeColumns& of_class, int64_t first, uint32_t todo, bool above) {
    uint32_t done = 0;
    if (candidate >= 0) {
      done = take(candidate, first, todo);
    }
    if ((todo & ~done) != 0 && above) {
      done |= todo & ~take_from_above(first, todo & ~done);
    }
    uint32_t searched = todo & ~done;
    if (searched != 0 && lonely > 0) {
      const Block square = squares_from({pass.tile, image.channels}, 0, pass.lonely_point);
      searched &= ~less(square, splat(lonely));
    }
    if (pass.check_finite && (searched & ~sound) != 0) {
      sound |= finite(pass.tile, image.channels, searched);
      pass.found_infinite |= (searched & ~sound) != 0;
      searched &= sound;
    }
    while (searched != 0) {
      const int lane = __builtin_ctz(searched);
      searched &= searched - 1;
      for (int64_t c = 0; c < image.channels; ++c) {
        pass.point[c] = pass.tile[c * kBlock + lane];
      }
      float square;
      const int32_t k = nearest_mode(modes, of_class, pass.point, square);
      if (!(square < modes.assign)) {
        searched &= ~remember_lonely(square);
        continue;
      }
      pass.labels[first + lane] = pass.base + k + 1;
      pass.support[k] += square < modes.near;
      done |= 1u << lane;
      candidate = k;
      if (searched != 0) {
        const uint32_t taken = take(k, first, searched);
        done |= taken;
        searched &= ~taken;
      }
    }
    return done;
  }
};

inline void assign(const ImageView& image, const Modes& modes, AssignPass& pass) {
  BlockPass block = {image, modes, pass};
  const int64_t begin = pass.first_word * 64;
  for (int64_t word = pass.first_word; word < pass.last_word; ++word) {
    uint64_t left = pass.todo[word];
    if (left == 0) {
      continue;
    }
    for (int shift = 0; shift < 64; shift += kBlock) {
      uint32_t todo = static_cast<uint32_t>(left >> shift) & 0xffffu;
      if (todo == 0) {
        continue;
      }
      const int64_t first = word * 64 + shift;
      read_tile(image, first, pass.tile);
      block.sound = 0;
      uint32_t done = 0;
      if (image.classes == nullptr) {
        const bool above = image.width > 0 && first - image.width >= begin;
        done = block.assign(modes.of_class[0], first, todo, above);
      }
      while (image.classes != nullptr && todo != 0) {
        const int32_t of_class = image.classes[first + __builtin_ctz(todo)];
        uint32_t same = 0;
        for (uint32_t lanes = todo; lanes != 0; lanes &= lanes - 1) {
          const int lane = __builtin_ctz(lanes);
          same |= static_cast<uint32_t>(image.classes[first + lane] == of_class) << lane;
        }
        if (block.candidate >= 0 && modes.mode_class[block.candidate] != of_class) {
          block.candidate = -1;
        }
        block.lonely = 0;
        done |= block.assign(modes.of_class[of_class], first, same, false);
        todo &= ~same;
      }
      left &= ~(static_cast<uint64_t>(done) << shift);
    }
    pass.todo[word] = left;
  }
}

}  // namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET
