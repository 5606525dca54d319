// How images and their pixels are shared among threads.
//
// What is a part depends on sizes and the number of threads alone, and sums over parts are made in
// their order: results are the same from run to run.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "common/strides.h"

namespace discloss::cpu {

// Where part p of n pixels begins; it ends where the next begins. Whole cache lines of slots, so
// that no two threads write to the same one.
inline int64_t part_boundary(int64_t n, int64_t parts, int64_t part) {
  return std::min(n, ((n + parts - 1) / parts + 63) / 64 * 64 * part);
}

// Calls body(part, begin, end) for each of the parts of n, in parallel.
template <typename Body>
void for_each_part(int64_t n, int64_t parts, const Body& body) {
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      body(part, part_boundary(n, parts, part), part_boundary(n, parts, part + 1));
    }
  });
}

// Calls body(b, parts) for every image: large images one after the other, so that each is still in
// the cache for its second pass, with their pixels in as many parts as there are threads; small
// ones side by side, in one part, which needs no waiting between passes. What would be left for
// some of the threads alone goes in parts too. Which thread has which image is the same in every
// call: some of it may still be in its cache.
template <typename Body>
void for_each_image(const Images& images, int64_t channels, const Body& body) {
  constexpr int64_t kSmall = 1 << 15, kLarge = 1 << 20;  // elements
  const int64_t threads = at::get_num_threads();
  const int64_t even = images.count / threads * threads;
  const auto in_parts = [&](int64_t b) {
    return threads > 1 && images.size(b) * channels > (b < even ? kLarge : kSmall);
  };
  for (int64_t b = 0; b < images.count; ++b) {
    if (in_parts(b)) {
      body(b, threads);
    }
  }
  at::parallel_for(0, images.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      if (!in_parts(b)) {
        body(b, 1);
      }
    }
  });
}

}  // namespace discloss::cpu
