// Workspace layout and pass order: between the binding and the kernels.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "common/cuda/launching.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/cuda/tile.cuh"
#include "forward_pass.cuh"
#include "gradient_kernels.cuh"
#include "ids_kernels.cuh"
#include "launch.h"
#include "means_kernels.cuh"
#include "plans.cuh"
#include "pull_kernels.cuh"
#include "push_kernels.cuh"
#include "small_kernels.cuh"
#include "sums.cuh"

namespace discloss::cuda {
namespace {

template <typename Function>
cudaError_t dispatch_norm(int norm, Function function) {
  return norm == 1 ? function(Norm<1>{}) : function(Norm<2>{});
}

template <int kNorm>
constexpr int norm_of(Norm<kNorm>) {
  return kNorm;
}

// Calls function(channels_in_registers, as a type), or function(0) where the rows of a table [B, M,
// D] may not be read 16 bytes at a time.
template <typename scalar_t, int kNorm, typename Function>
cudaError_t dispatch_channels(const Batch& batch, const void* table, Function function) {
  if constexpr (kNorm == 2 && !std::is_same_v<scalar_t, double>) {
    const bool aligned = reinterpret_cast<uintptr_t>(table) % 16 == 0;
    switch (aligned ? channels_in_registers(batch) : 0) {
      case 8:
        return function(std::integral_constant<int, 8>{});
      case 16:
        return function(std::integral_constant<int, 16>{});
      case 32:
        return function(std::integral_constant<int, 32>{});
    }
  }
  return function(std::integral_constant<int, 0>{});
}

// --- ids -----------------------------------------------------------------------------------------

IdTable take_table(Workspace& workspace, int64_t images, int64_t limit, int64_t ignore_count,
                   size_t* clear_bytes) {
  IdTable table = {};
  table.limit = limit;
  table.capacity = kMinTableEntries;
  while (table.capacity < 2 * (limit + ignore_count)) {
    table.capacity *= 2;
  }
  const size_t before = workspace.bytes();
  table.keys = workspace.take<Key>(images * (table.capacity + 1));
  table.slots = workspace.take<int32_t>(images * (table.capacity + 1));
  table.last = workspace.take<int32_t>(images);
  *clear_bytes = workspace.bytes() - before;
  table.ids = workspace.take<int64_t>(images * limit);
  table.entries = workspace.take<int32_t>(images * limit);
  return table;
}

// As many of them as a launch takes.
IgnoredIds ignored_ids(const int64_t* ids, int64_t count) {
  IgnoredIds ignored = {};
  ignored.count = static_cast<int>(std::min<int64_t>(count, kIgnoredPerLaunch));
  std::copy_n(ids, ignored.count, ignored.ids);
  return ignored;
}

// Phases 1 and 2 of ids_kernels.cuh.
cudaError_t launch_insert(const IdTable& table, size_t clear_bytes, const Images& images,
                          const BlockRanges& ranges, const Labels& labels,
                          const int64_t* ignore_labels, int64_t ignore_count, bool must_fit,
                          const Queue& queue) {
  if (clear_bytes > 0) {
    DISCLOSS_RETURN_IF_ERROR(cudaMemsetAsync(table.keys, 0xFF, clear_bytes, queue.stream));
  }
  for (int64_t first = 0; first < ignore_count; first += kIgnoredPerLaunch) {
    const IgnoredIds ignored = ignored_ids(ignore_labels + first, ignore_count - first);
    DISCLOSS_RETURN_IF_ERROR(launch(insert_ignored_kernel,
                                    {std::min<int64_t>(images.count, 1024), 32}, queue, table,
                                    images.count, ignored));
  }
  return launch(insert_ids_kernel, {ranges.blocks, kPassThreads}, queue, table, images, ranges,
                labels, must_fit);
}

// All four phases: a slot for every pixel, and the number of instances.
cudaError_t launch_ids(const ForwardArguments& a, const Device& device, const IdTable& table,
                       size_t clear_bytes, const Queue& queue) {
  const Images& images = a.batch.images;
  const BlockRanges ranges = plan_ids(device, a.batch.pixels);
  const int64_t warps = images.count * std::max<int64_t>(a.batch.max_instances, 1);
  DISCLOSS_RETURN_IF_ERROR(launch_insert(table, clear_bytes, images, ranges, a.labels,
                                         a.ignore_labels, a.ignore_count, true, queue));
  DISCLOSS_RETURN_IF_ERROR(launch(rank_ids_kernel, {ceil_div(warps * 32, kRowThreads), kRowThreads},
                                  queue, table, images.count, a.instances));
  return launch(assign_slots_kernel, {ranges.blocks, kPassThreads}, queue, table, images, ranges,
                a.labels, a.slots);
}

// --- forward -------------------------------------------------------------------------------------

bool is_one_launch(const Device& device, const ForwardArguments& a) {
  return is_small(device, a.batch) && a.ignore_count <= kIgnoredPerLaunch;
}

struct ForwardWorkspace {
  IdTable table;
  size_t clear_bytes;
  double* partial_sums;   // [blocks + B, M (D + 1)]
  double* variance_sums;  // [B, M]
  double* push_sums;      // [B, M]
  void* mean_norms;       // [B, M] accscalar_t
  size_t bytes;
};

template <typename accscalar_t>
ForwardWorkspace carve_forward(const ForwardArguments& a, const SumPlan& plan, void* base) {
  Workspace workspace(base);
  ForwardWorkspace w = {};
  const int64_t images = a.batch.images.count, rows = images * a.batch.max_instances;
  w.table = take_table(workspace, images, a.batch.max_instances, a.ignore_count, &w.clear_bytes);
  w.partial_sums = workspace.take<double>((plan.ranges.blocks + images) * a.batch.max_instances *
                                          (a.batch.channels + 1));
  w.variance_sums = workspace.take<double>(rows);
  w.push_sums = workspace.take<double>(rows);
  w.mean_norms = workspace.take<accscalar_t>(rows);
  w.bytes = workspace.bytes();
  return w;
}

template <typename scalar_t>
ForwardPass<scalar_t> forward_pass(const ForwardArguments& a, const SumPlan& plan,
                                   const ForwardWorkspace& w) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const Batch& batch = a.batch;
  return {plan,
          global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch.images),
          {w.partial_sums, batch.images, plan.ranges, batch.max_instances, batch.channels},
          a.slots,
          a.instances,
          a.counts,
          static_cast<accscalar_t*>(a.means),
          static_cast<accscalar_t*>(w.mean_norms),
          static_cast<accscalar_t*>(a.pull),
          static_cast<accscalar_t*>(a.push),
          w.variance_sums,
          w.push_sums,
          a.delta_var,
          a.delta_dist,
          {a.alpha, a.beta, a.gamma, static_cast<accscalar_t*>(a.loss),
           static_cast<accscalar_t*>(a.variance), static_cast<accscalar_t*>(a.distance),
           static_cast<accscalar_t*>(a.regularization)}};
}

template <typename scalar_t, int kNorm>
cudaError_t launch_push(const Batch& batch, const ForwardPass<scalar_t>& pass, const Queue& queue) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const int64_t images = batch.images.count, limit = batch.max_instances;
  return dispatch_channels<scalar_t, kNorm>(batch, pass.means, [&](auto channels) {
    if constexpr (channels() > 0) {
      using Block = PushBlock<channels()>;
      return launch(
          push_in_registers_kernel<channels()>,
          {images * ceil_div(limit, Block::kInstances), Block::kThreads, Block::kSharedBytes},
          queue, limit, pass.instances, pass.means, pass.mean_norms, pass.delta_dist, pass.push,
          pass.push_sums);
    } else {
      return launch(push_kernel<accscalar_t, kNorm>,
                    {ceil_div(pass.rows() * 32, kRowThreads), kRowThreads}, queue, images, limit,
                    batch.channels, pass.instances, pass.means, pass.delta_dist, pass.push,
                    pass.push_sums);
    }
  });
}

// Pass 2.
template <typename scalar_t, int kNorm>
cudaError_t launch_sum_pull(const Batch& batch, const ForwardPass<scalar_t>& pass,
                            const Queue& queue) {
  const int64_t blocks = pass.plan.ranges.blocks;
  return dispatch_channels<scalar_t, kNorm>(batch, pass.means, [&](auto channels) {
    if constexpr (channels() > 0) {
      return launch(sum_pull_in_registers_kernel<scalar_t, channels()>,
                    {blocks, kPassThreads, pass.plan.shared_bytes}, queue, pass.plan,
                    pass.embeddings, pass.slots, pass.means, pass.delta_var, pass.partials);
    } else {
      return launch(sum_pull_kernel<scalar_t, kNorm>,
                    {blocks, kPassThreads, pass.plan.shared_bytes}, queue, pass.plan,
                    batch.channels, pass.embeddings, pass.slots, pass.means, pass.delta_var,
                    pass.partials);
    }
  });
}

template <typename scalar_t, int kNorm>
cudaError_t launch_passes(const Batch& batch, const ForwardPass<scalar_t>& pass,
                          const Queue& queue) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  constexpr size_t kScratch = kRowThreads * sizeof(double);
  DISCLOSS_RETURN_IF_ERROR(launch(
      sum_pixels_kernel<scalar_t>, {pass.plan.ranges.blocks, kPassThreads, pass.plan.shared_bytes},
      queue, pass.plan, batch.channels, pass.embeddings, pass.slots, pass.partials));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_means_kernel<accscalar_t, kNorm>,
                                  {pass.rows(), kRowThreads, kScratch}, queue, pass.partials,
                                  pass.counts, pass.means, pass.mean_norms));
  DISCLOSS_RETURN_IF_ERROR((launch_push<scalar_t, kNorm>(batch, pass, queue)));
  DISCLOSS_RETURN_IF_ERROR((launch_sum_pull<scalar_t, kNorm>(batch, pass, queue)));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_pull_kernel<accscalar_t>,
                                  {pass.rows(), kRowThreads, kScratch}, queue, pass.partials,
                                  pass.instances, pass.counts, pass.pull, pass.variance_sums));
  return launch(finish_kernel<accscalar_t>, {batch.images.count, kRowThreads, kScratch}, queue,
                pass.term_sums(), batch.images.count, batch.max_instances, pass.instances,
                pass.terms);
}

// Ids and passes of a small batch.
template <typename scalar_t>
cudaError_t launch_small(const ForwardArguments& a, const ForwardPass<scalar_t>& pass,
                         const ForwardWorkspace& w, const Queue& queue) {
  if constexpr (std::is_same_v<scalar_t, double>) {
    return cudaErrorNotSupported;  // is never small
  } else {
    const auto words = static_cast<int64_t>(w.clear_bytes / sizeof(int32_t));
    const size_t shared_bytes = std::max(pass.plan.shared_bytes, kPassThreads * sizeof(double));
    return launch(small_forward_kernel<scalar_t>,
                  {kClusterBlocks, kPassThreads, shared_bytes, kClusterBlocks}, queue, w.table,
                  words, ignored_ids(a.ignore_labels, a.ignore_count), a.labels, pass);
  }
}

// --- backward ------------------------------------------------------------------------------------

struct BackwardWorkspace {
  void* factors;           // [B, M] accscalar_t
  void* shared_gradients;  // [B, M, D] accscalar_t
  size_t bytes;
};

template <typename accscalar_t>
BackwardWorkspace carve_backward(const BackwardArguments& a, void* base) {
  Workspace workspace(base);
  BackwardWorkspace w = {};
  const int64_t rows = a.batch.images.count * a.batch.max_instances;
  w.factors = workspace.take<accscalar_t>(rows);
  w.shared_gradients = workspace.take<accscalar_t>(rows * a.batch.channels);
  w.bytes = workspace.bytes();
  return w;
}

template <typename scalar_t, int kNorm>
cudaError_t launch_gradient(const Batch& batch, const GradientPass<scalar_t>& pass,
                            const Queue& queue) {
  const int64_t blocks = pass.plan.ranges.blocks;
  return dispatch_channels<scalar_t, kNorm>(batch, pass.means, [&](auto channels) {
    if constexpr (channels() > 0) {
      return launch(gradient_in_registers_kernel<scalar_t, channels()>, {blocks, kPassThreads},
                    queue, pass);
    } else {
      return launch(gradient_kernel<scalar_t, kNorm>,
                    {blocks, kPassThreads, pass.plan.shared_bytes}, queue, pass);
    }
  });
}

template <typename scalar_t, int kNorm>
cudaError_t launch_backward_passes(const BackwardArguments& a, const Device& device,
                                   const BackwardWorkspace& w, const Queue& queue) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const Batch& batch = a.batch;
  const int64_t images = batch.images.count, rows = images * batch.max_instances;
  const Instances<accscalar_t> instances = {batch.max_instances,
                                            batch.channels,
                                            a.instances,
                                            a.counts,
                                            static_cast<const accscalar_t*>(a.means),
                                            static_cast<const accscalar_t*>(a.pull),
                                            static_cast<const accscalar_t*>(a.push)};
  auto* factors = static_cast<accscalar_t*>(w.factors);
  auto* shared_gradients = static_cast<accscalar_t*>(w.shared_gradients);
  const GradientPass<scalar_t> pass = {
      plan_gradient<scalar_t>(device, batch),
      batch.images,
      global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch.images),
      a.slots,
      instances.means,
      factors,
      shared_gradients,
      batch.max_instances,
      batch.channels,
      a.delta_var,
      global(static_cast<scalar_t*>(a.gradient), a.gradient_strides, batch.images)};
  const Weights weights = {a.alpha, a.beta, a.gamma};
  const Upstreams upstreams = {a.loss, a.variance, a.distance, a.regularization};
  if constexpr (kNorm == 2 && !std::is_same_v<scalar_t, double>) {
    if (is_small(device, batch)) {
      return launch(small_backward_kernel<scalar_t>,
                    {kClusterBlocks, kPassThreads, pass.plan.shared_bytes, kClusterBlocks}, queue,
                    instances, weights, upstreams, factors, shared_gradients, pass);
    }
  }
  DISCLOSS_RETURN_IF_ERROR(launch(instance_gradients_kernel<accscalar_t, kNorm>,
                                  {ceil_div(rows * 32, kRowThreads), kRowThreads}, queue, instances,
                                  images, weights, upstreams, factors, shared_gradients));
  return launch_gradient<scalar_t, kNorm>(batch, pass, queue);
}

}  // namespace

cudaError_t forward_workspace(const ForwardArguments& arguments, size_t* bytes) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(read_counts_kernel, &device));
  return dispatch_scalar(arguments.batch.scalar, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using accscalar_t = typename Accumulate<scalar_t>::type;
    const SumPlan plan =
        plan_sums<scalar_t>(device, arguments.batch, is_one_launch(device, arguments));
    *bytes = carve_forward<accscalar_t>(arguments, plan, nullptr).bytes;
    return cudaSuccess;
  });
}

cudaError_t launch_forward(const ForwardArguments& arguments, void* workspace,
                           cudaStream_t stream) {
  const Batch& batch = arguments.batch;
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(read_counts_kernel, &device));
  return dispatch_scalar(batch.scalar, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using accscalar_t = typename Accumulate<scalar_t>::type;
    const bool one_launch = is_one_launch(device, arguments);
    const SumPlan plan = plan_sums<scalar_t>(device, batch, one_launch);
    const ForwardWorkspace w = carve_forward<accscalar_t>(arguments, plan, workspace);
    const ForwardPass<scalar_t> pass = forward_pass<scalar_t>(arguments, plan, w);
    const Queue queue = queue_of(device, stream);
    if (one_launch) {
      return launch_small(arguments, pass, w, queue);
    }
    DISCLOSS_RETURN_IF_ERROR(launch_ids(arguments, device, w.table, w.clear_bytes, queue));
    return dispatch_norm(batch.norm, [&](auto norm) {
      return launch_passes<scalar_t, norm_of(norm)>(batch, pass, queue);
    });
  });
}

cudaError_t backward_workspace(const BackwardArguments& arguments, size_t* bytes) {
  return dispatch_scalar(arguments.batch.scalar, [&](auto scalar) {
    using accscalar_t = typename Accumulate<decltype(scalar)>::type;
    *bytes = carve_backward<accscalar_t>(arguments, nullptr).bytes;
    return cudaSuccess;
  });
}

cudaError_t launch_backward(const BackwardArguments& arguments, void* workspace,
                            cudaStream_t stream) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(read_counts_kernel, &device));
  return dispatch_scalar(arguments.batch.scalar, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using accscalar_t = typename Accumulate<scalar_t>::type;
    const BackwardWorkspace w = carve_backward<accscalar_t>(arguments, workspace);
    return dispatch_norm(arguments.batch.norm, [&](auto norm) {
      return launch_backward_passes<scalar_t, norm_of(norm)>(arguments, device, w,
                                                             queue_of(device, stream));
    });
  });
}

namespace {

IdTable carve_count(const CountArguments& a, void* base, size_t* clear_bytes, size_t* bytes) {
  Workspace workspace(base);
  const IdTable table = take_table(workspace, a.images.count, a.limit, a.ignore_count, clear_bytes);
  *bytes = workspace.bytes();
  return table;
}

}  // namespace

cudaError_t count_workspace(const CountArguments& arguments, size_t* bytes) {
  size_t clear_bytes = 0;
  carve_count(arguments, nullptr, &clear_bytes, bytes);
  return cudaSuccess;
}

cudaError_t launch_count(const CountArguments& arguments, void* workspace, cudaStream_t stream) {
  size_t clear_bytes = 0, bytes = 0;
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(read_counts_kernel, &device));
  const Queue queue = queue_of(device, stream);
  const IdTable table = carve_count(arguments, workspace, &clear_bytes, &bytes);
  DISCLOSS_RETURN_IF_ERROR(launch_insert(
      table, clear_bytes, arguments.images, plan_ids(device, arguments.pixels), arguments.labels,
      arguments.ignore_labels, arguments.ignore_count, false, queue));
  return launch(read_counts_kernel, {ceil_div(arguments.images.count, kRowThreads), kRowThreads},
                queue, table, arguments.images.count, arguments.count);
}

}  // namespace discloss::cuda
