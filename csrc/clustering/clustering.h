// The contract of the op `cluster`: what every tensor is, once. Each backend implements
// cluster(ClusterInputs) and registers flat_cluster of it for its dispatch key.
//
//   B images . D channels . N pixels of an image . G given modes . M = max_clusters
//
// Nothing is differentiable. Every backend gives the same bits, whatever its number of threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "clustering_math.h"

namespace discloss {

using ClusterTuple =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Row k - 1 of an image is that of id k; rows from `number` on are 0, and -1 in `source`.
struct ClusterResult {
  at::Tensor ids;        // int32, [B, *spatial] or [N_total]: 1 to number by first pixels, or 0
  at::Tensor modes;      // [B, M, D] float32
  at::Tensor counts;     // [B, M] int32: pixels
  at::Tensor classes;    // [B, M] int64: value of foreground; 1 without classes
  at::Tensor source;     // [B, M] int32: row of the given mode, -1 for a new one
  at::Tensor number;     // [B] int32
  at::Tensor truncated;  // [B] bool: max_clusters kept some out

  ClusterTuple as_tuple() const { return {ids, modes, counts, classes, source, number, truncated}; }
};

// What the op takes.
struct ClusterInputs {
  // float32, float64, float16 or bfloat16, rounded to float32 first; any strides
  const at::Tensor& embeddings;  // [B, D, *spatial]; or, with offsets, a packed batch [N_total, D]
  const std::optional<at::Tensor>& offsets;  // [B + 1] int64, 0 = offsets[0] <= ... = N_total
  // bool, or the class of each pixel, 0 for background: int8, int16, int32, int64, uint8 or uint16;
  // none: all is foreground
  const std::optional<at::Tensor>& foreground;  // [B, *spatial] or [N_total]
  const std::optional<at::Tensor>&
      modes;  // [B, G, D], floating; a row that is not finite is absent
  ClusterOptions options;
};

// --- the same as flat lists: schema, the dispatcher's function type, and the way between ---

inline constexpr char kClusterArguments[] =
    "(Tensor embeddings, Tensor? offsets, Tensor? foreground, Tensor? modes, float delta_var, "
    "float delta_dist, int min_size, int sample, int max_clusters, int fragment, bool connected)";
inline constexpr char kClusterResults[] =
    "(Tensor ids, Tensor modes, Tensor counts, Tensor classes, Tensor source, Tensor number, "
    "Tensor truncated)";

// implementation(ClusterInputs) as the dispatcher calls it.
template <auto implementation>
auto flat_cluster(const at::Tensor& embeddings, const std::optional<at::Tensor>& offsets,
                  const std::optional<at::Tensor>& foreground,
                  const std::optional<at::Tensor>& modes, double delta_var, double delta_dist,
                  int64_t min_size, int64_t sample, int64_t max_clusters, int64_t fragment,
                  bool connected) {
  return implementation(ClusterInputs{
      embeddings, offsets, foreground, modes,
      ClusterOptions{delta_var, delta_dist, min_size, sample, max_clusters, fragment, connected}});
}

}  // namespace discloss
