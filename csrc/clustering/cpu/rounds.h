// The rounds of one image: sample, trees, modes that are kept, support, assignment.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/cpu/parts.h"
#include "foreground.h"
#include "trees.h"

namespace discloss::cpu::clustering {

// Writes pixels by their numbers as rows of float32; a function of each dtype.
using GatherRows = void(const ImageView& image, const int64_t* pixels, int64_t count, float* rows);

// What does not change from image to image.
struct Method {
  const ClusterKernels& kernels;
  GatherRows* gather;
  ClusterOptions options;
  Radii radii;
};

// Modes that were found, row k - 1 that of label k.
struct Found {
  Points modes;
  std::vector<int32_t> source;  // rows of given modes, -1 of new ones
  bool truncated = false;
};

// Modes given from outside: rows that are finite, and their numbers.
struct Given {
  std::vector<float> rows;
  std::vector<int32_t> source;
};

// Pixels whose bit is set are those that are left. Where few are left, they are kept as rows of
// float32, an image of their own, and the whole one is not read again.
class Rounds {
 public:
  // labels [N]: 0, and afterwards numbers of modes. parts: as many as there are threads to use.
  Rounds(const Method& method, const ImageView& image, Foreground& foreground, int32_t* labels,
         int64_t parts)
      : method_(method),
        options_(method.options),
        image_(image),
        foreground_(foreground),
        labels_(labels),
        parts_(parts),
        classes_(static_cast<int64_t>(foreground.values.size())) {}

  // Pixels are taken to be finite until they turn out not to be: then these leave the foreground,
  // and all is done again.
  Found run(const Given& given) {
    while (!try_all(given)) {
      std::fill_n(labels_, image_.pixels, 0);
    }
    return std::move(found_);
  }

 private:
  // Of a round: the modes that stay, or that pixels were found that are not finite.
  static constexpr int64_t kNotFinite = -1;

  // Pixels are few where two samples hold them.
  static constexpr int64_t kPackedSamples = 2;

  bool try_all(const Given& given) {
    found_ = {{image_.channels, {}, {}}, {}, false};
    left_ = foreground_.bits;
    packed_.reset();
    count_left();
    if (!given.source.empty() && pixels_left_ > 0) {
      const Points modes = given_modes(given);
      if (settle(modes, given.source) == kNotFinite) {
        return false;
      }
    }
    return run_rounds();
  }

  bool run_rounds() {
    const int64_t first = pixels_left_, most = options_.sample;
    bool full = false;
    while (pixels_left_ >= options_.min_size) {
      const int64_t size = full ? most : sample_size(most, pixels_left_, first);
      const int64_t step = (pixels_left_ + size - 1) / size;
      Points points;
      const Points& sample = sample_points(step, points);
      if (!checked_ && !all_finite(sample.rows)) {
        check_all();
        return false;
      }
      const int64_t kept = settle(heaviest(sample, step), {});
      if (kept == kNotFinite || (kept == 0 && !checked_ && !check_all())) {
        return false;
      }
      if (kept == 0 && (step == 1 || size == most)) {
        break;
      }
      full = kept == 0;
    }
    return true;
  }

  static bool all_finite(const std::vector<float>& rows) {
    bool finite = true;
    for (const float x : rows) {
      finite &= std::isfinite(x);
    }
    return finite;
  }

  // Calls body(part, first word, last word) for parts of the pixels in view that are not empty.
  template <typename Body>
  void for_each_words(const Body& body) {
    for_each_part(view().pixels, parts_, [&](int64_t part, int64_t begin, int64_t end) {
      if (begin < end) {
        body(part, begin / 64, (end + 63) / 64);
      }
    });
  }

  // Takes pixels that are not finite out of the foreground; whether there were none.
  bool check_all() {
    std::vector<int64_t> dropped(static_cast<size_t>(parts_));
    for_each_words([&](int64_t part, int64_t first, int64_t last) {
      Floats tile;
      tile.resize(image_.channels * kBlock);
      dropped[static_cast<size_t>(part)] =
          method_.kernels.drop_infinite(image_, foreground_.bits.data(), first, last, tile.data());
    });
    checked_ = true;
    return std::accumulate(dropped.begin(), dropped.end(), int64_t{0}) == 0;
  }

  // --- pixels that are left ---------------------------------------------------------------------

  struct Packed {
    std::vector<int64_t> pixels;  // [n] their numbers in the image
    Points points;
    std::vector<int32_t> labels;  // [n]
    std::vector<uint64_t> whole;  // bits of all of them
    ImageView view;

    void look(const ClusterKernels& kernels, bool with_classes) {
      const auto* rows = points.rows.data();
      view = {kernels.read_float,
              reinterpret_cast<const char*>(rows),
              reinterpret_cast<const char*>(rows + points.rows.size()),
              sizeof(float),
              1,
              points.channels,
              points.channels,
              points.count(),
              0,
              with_classes ? points.classes.data() : nullptr};
    }
  };

  const ImageView& view() const { return packed_ ? packed_->view : image_; }
  int32_t* view_labels() { return packed_ ? packed_->labels.data() : labels_; }

  // After some were assigned.
  void count_left() {
    if (packed_) {
      unpack_assigned();
    }
    pixels_left_ = method_.kernels.count_bits(left_.data(), static_cast<int64_t>(left_.size()));
    if (!packed_ && pixels_left_ <= kPackedSamples * options_.sample) {
      pack();
    }
  }

  std::vector<int64_t> every_pixel(int64_t step) const {
    std::vector<int64_t> pixels(static_cast<size_t>((pixels_left_ + step - 1) / step));
    method_.kernels.every_bit(left_.data(), static_cast<int64_t>(left_.size()), step,
                              pixels.data());
    return pixels;
  }

  Points gather(const std::vector<int64_t>& pixels) const {
    const auto count = static_cast<int64_t>(pixels.size());
    Points points = {image_.channels, {}, {}};
    points.rows.resize(pixels.size() * static_cast<size_t>(image_.channels));
    points.classes.resize(pixels.size());
    at::parallel_for(0, count, 1024, [&](int64_t begin, int64_t end) {
      method_.gather(image_, pixels.data() + begin, end - begin,
                     points.rows.data() + begin * image_.channels);
    });
    if (image_.classes != nullptr) {
      for (size_t i = 0; i < pixels.size(); ++i) {
        points.classes[i] = image_.classes[pixels[i]];
      }
    }
    return points;
  }

  void pack() {
    const std::vector<int64_t> pixels = every_pixel(1);
    const Points points = gather(pixels);
    packed_ = std::make_unique<Packed>();
    packed_->points.channels = image_.channels;
    for (size_t i = 0; i < pixels.size(); ++i) {
      const float* row = points.row(static_cast<int64_t>(i));
      if (std::all_of(row, row + image_.channels, [](float x) { return std::isfinite(x); })) {
        packed_->pixels.push_back(pixels[i]);
        packed_->points.push(row, points.classes[i]);
      } else {
        foreground_.bits[static_cast<size_t>(pixels[i] / 64)] &= ~(uint64_t{1} << (pixels[i] % 64));
      }
    }
    checked_ = true;
    repack();
  }

  // The bits and labels of the packed pixels, all of which are left.
  void repack() {
    pixels_left_ = packed_->points.count();
    packed_->labels.assign(static_cast<size_t>(pixels_left_), 0);
    packed_->look(method_.kernels, image_.classes != nullptr);
    packed_->whole = all_bits(pixels_left_);
    left_ = packed_->whole;
  }

  void unpack_assigned() {
    Packed& packed = *packed_;
    size_t kept = 0;
    const auto channels = static_cast<size_t>(image_.channels);
    for (size_t i = 0; i < packed.pixels.size(); ++i) {
      if (packed.labels[i] > 0) {
        labels_[packed.pixels[i]] = packed.labels[i];
        continue;
      }
      packed.pixels[kept] = packed.pixels[i];
      packed.points.classes[kept] = packed.points.classes[i];
      std::copy_n(packed.points.rows.data() + i * channels, channels,
                  packed.points.rows.data() + kept * channels);
      ++kept;
    }
    packed.pixels.resize(kept);
    packed.points.classes.resize(kept);
    packed.points.rows.resize(kept * channels);
    repack();
  }

  // Step 1; `made` holds the points where they are not there already.
  const Points& sample_points(int64_t step, Points& made) const {
    if (!packed_) {
      made = gather(every_pixel(step));
      return made;
    }
    if (step == 1) {
      return packed_->points;
    }
    made.channels = image_.channels;
    for (int64_t i = 0; i < pixels_left_; i += step) {
      made.push(packed_->points.row(i), packed_->points.classes[static_cast<size_t>(i)]);
    }
    return made;
  }

  // --- modes -------------------------------------------------------------------------------------

  // Round 0. With classes a mode is of that of the pixel nearest to it, the first of equal ones.
  Points given_modes(const Given& given) {
    const auto count = std::min(static_cast<int64_t>(given.source.size()), options_.max_clusters);
    const auto numbers = static_cast<size_t>(count);
    Points modes = {image_.channels,
                    {given.rows.begin(), given.rows.begin() + count * image_.channels},
                    std::vector<int32_t>(numbers)};
    if (classes_ > 1) {
      if (!checked_ && !check_all()) {
        left_ = foreground_.bits;
        count_left();
      }
      find_classes(modes);
    }
    found_.truncated = pixels_left_ > 0 && static_cast<int64_t>(given.source.size()) > count;
    return modes;
  }

  void find_classes(Points& modes) {
    const auto numbers = static_cast<size_t>(modes.count());
    Floats tile;
    tile.resize(image_.channels * kBlock);
    std::vector<float> nearest(numbers, std::numeric_limits<float>::infinity());
    std::vector<uint8_t> seen(numbers);
    float squares[kBlock];
    for (int64_t first = 0; first < view().pixels; first += kBlock) {
      const uint64_t lanes = (left_[static_cast<size_t>(first / 64)] >> (first % 64)) & 0xffffu;
      if (lanes == 0) {
        continue;
      }
      view().read(view().embeddings + first * view().pixel_stride * view().element_bytes,
                  view().end, view().channel_stride, view().pixel_stride, image_.channels,
                  tile.data());
      for (size_t k = 0; k < numbers; ++k) {
        method_.kernels.distances({tile.data(), image_.channels}, 0, kBlock,
                                  modes.row(static_cast<int64_t>(k)), squares);
        for (uint64_t rest = lanes; rest != 0; rest &= rest - 1) {
          const int lane = __builtin_ctzll(rest);
          if (seen[k] == 0 || squares[lane] < nearest[k]) {
            nearest[k] = squares[lane];
            modes.classes[k] = view().classes[first + lane];
            seen[k] = 1;
          }
        }
      }
    }
  }

  // Steps 2 to 4: the heaviest trees first, and of the others those that are apart.
  Points heaviest(const Points& sample, int64_t step) {
    const int64_t least = least_weight(options_.min_size, step);
    TreeSearch search(method_.kernels, sample, method_.radii, least);
    const Trees trees = search.find(classes_);
    std::vector<int32_t> order(trees.weight.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return trees.weight[static_cast<size_t>(a)] > trees.weight[static_cast<size_t>(b)];
    });
    std::unordered_map<int32_t, ColumnStore> earlier, of_round;
    const auto store = [&](auto& stores, const Points& points, int64_t k) {
      const int32_t of_class = points.classes[static_cast<size_t>(k)];
      stores.try_emplace(of_class, image_.channels, 64).first->second.push(points.row(k));
    };
    for (int64_t k = 0; k < found_.modes.count(); ++k) {
      store(earlier, found_.modes, k);
    }
    const auto none_within = [&](const auto& stores, int32_t k, float limit) {
      const auto found = stores.find(trees.modes.classes[static_cast<size_t>(k)]);
      return found == stores.end() ||
             method_.kernels.first_within(found->second.view(), 0, found->second.count(),
                                          trees.modes.row(k), limit) < 0;
    };
    Points kept = {image_.channels, {}, {}};
    for (const int32_t k : order) {
      if (none_within(of_round, k, method_.radii.near) &&
          none_within(earlier, k, method_.radii.far)) {
        if (found_.modes.count() + kept.count() == options_.max_clusters) {
          found_.truncated = true;
          break;
        }
        kept.push(trees.modes.row(k), trees.modes.classes[static_cast<size_t>(k)]);
        store(of_round, trees.modes, k);
      }
    }
    return kept;
  }

  // --- pixels to modes ---------------------------------------------------------------------------

  // Steps 5 and 6. source: of given modes. The number of modes that stay, or kNotFinite.
  int64_t settle(const Points& modes, const std::vector<int32_t>& source) {
    if (modes.count() == 0) {
      return 0;
    }
    bool infinite = false;
    const std::vector<int64_t> support = assign(modes, left_, infinite);
    if (infinite) {
      check_all();
      return kNotFinite;
    }
    checked_ = true;
    const auto base = static_cast<int32_t>(found_.modes.count());
    Points stay = {image_.channels, {}, {}};
    std::vector<int32_t> renamed(support.size());  // mode -> label, 0: dropped
    for (size_t k = 0; k < support.size(); ++k) {
      if (support[k] >= options_.min_size) {
        stay.push(modes.row(static_cast<int64_t>(k)), modes.classes[k]);
        renamed[k] = base + static_cast<int32_t>(stay.count());
        found_.source.push_back(source.empty() ? -1 : source[k]);
      }
    }
    if (stay.count() < modes.count()) {
      std::vector<uint64_t> dropped = drop(renamed, base);
      if (stay.count() > 0) {
        assign(stay, dropped, infinite);
      }
      for (size_t word = 0; word < left_.size(); ++word) {
        left_[word] |= dropped[word];
      }
    }
    for (int64_t k = 0; k < stay.count(); ++k) {
      found_.modes.push(stay.row(k), stay.classes[static_cast<size_t>(k)]);
    }
    if (stay.count() > 0) {
      count_left();
    }
    return stay.count();
  }

  // Pixels of `todo` to their nearest modes; those that have one leave the set. Their support.
  std::vector<int64_t> assign(const Points& modes, std::vector<uint64_t>& todo, bool& infinite) {
    const ModeTable table(method_.kernels, modes, classes_, options_, method_.radii);
    const auto base = static_cast<int32_t>(found_.modes.count());
    const auto count = static_cast<size_t>(modes.count());
    std::vector<std::vector<int64_t>> support(static_cast<size_t>(parts_));
    std::vector<uint8_t> found_infinite(static_cast<size_t>(parts_));
    for_each_words([&](int64_t part, int64_t first, int64_t last) {
      auto& of_part = support[static_cast<size_t>(part)];
      of_part.resize(count);
      Floats tile;
      tile.resize(image_.channels * (kBlock + 2));
      AssignPass pass = {};
      pass.todo = todo.data();
      pass.labels = view_labels();
      pass.base = base;
      pass.first_word = first;
      pass.last_word = last;
      pass.support = of_part.data();
      pass.tile = tile.data();
      pass.point = pass.tile + image_.channels * kBlock;
      pass.lonely_point = pass.point + image_.channels;
      pass.check_finite = !checked_;
      method_.kernels.assign(view(), table.modes(), pass);
      found_infinite[static_cast<size_t>(part)] = pass.found_infinite;
    });
    std::vector<int64_t> sum(count);
    for (size_t part = 0; part < support.size(); ++part) {
      infinite |= found_infinite[part] != 0;
      for (size_t k = 0; k < support[part].size(); ++k) {
        sum[k] += support[part][k];
      }
    }
    return sum;
  }

  // Labels by the modes that stay; the set of pixels of those that do not, whose label is 0.
  std::vector<uint64_t> drop(const std::vector<int32_t>& renamed, int32_t base) {
    std::vector<uint64_t> dropped(left_.size());
    int32_t* labels = view_labels();
    const std::vector<uint64_t>& whole = packed_ ? packed_->whole : foreground_.bits;
    for_each_words([&](int64_t, int64_t first, int64_t last) {
      for (int64_t word = first; word < last; ++word) {
        const auto w = static_cast<size_t>(word);
        for (uint64_t assigned = whole[w] & ~left_[w]; assigned != 0; assigned &= assigned - 1) {
          const int place = __builtin_ctzll(assigned);
          int32_t& label = labels[word * 64 + place];
          if (label > base) {
            label = renamed[static_cast<size_t>(label - base - 1)];
            dropped[w] |= static_cast<uint64_t>(label == 0) << place;
          }
        }
      }
    });
    return dropped;
  }

  const Method& method_;
  const ClusterOptions& options_;
  const ImageView& image_;
  Foreground& foreground_;
  int32_t* labels_;
  int64_t parts_;
  int64_t classes_;
  Found found_;
  std::vector<uint64_t> left_;  // of the image, or of the packed pixels
  std::unique_ptr<Packed> packed_;
  int64_t pixels_left_ = 0;
  bool checked_ = false;  // whether what is left is known to be finite
};

}  // namespace discloss::cpu::clustering
