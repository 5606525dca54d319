// The forward pass: its workspace and the order of its launches.
#include <algorithm>
#include <type_traits>

#include "common/cuda/launching.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "common/cuda/tuning.h"
#include "forward_pass.cuh"
#include "ids.cuh"
#include "launch.h"
#include "means_kernels.cuh"
#include "plans.cuh"
#include "pull_kernels.cuh"
#include "push_kernels.cuh"
#include "small_kernels.cuh"
#include "terms_kernels.cuh"

namespace discloss::cuda {
namespace {

bool is_one_launch(const Device& device, const ForwardArguments& a) {
  return is_small(device, a.batch) && a.ignore.count <= kIgnoredPerLaunch;
}

struct ForwardWorkspace {
  IdTable table;
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
  w.table = take_table(workspace, images, a.batch.max_instances, a.ignore.count);
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
  ForwardTables<accscalar_t> tables = {};
  tables.partials = {w.partial_sums, batch.images, plan.ranges, batch.max_instances,
                     batch.channels};
  tables.instances = a.instances;
  tables.counts = a.counts;
  tables.means = static_cast<accscalar_t*>(a.means);
  tables.mean_norms = static_cast<accscalar_t*>(w.mean_norms);
  tables.pull = static_cast<accscalar_t*>(a.pull);
  tables.push = static_cast<accscalar_t*>(a.push);
  tables.variance_sums = w.variance_sums;
  tables.push_sums = w.push_sums;
  tables.delta_dist = a.delta_dist;
  tables.terms = {a.alpha,
                  a.beta,
                  a.gamma,
                  static_cast<accscalar_t*>(a.loss),
                  static_cast<accscalar_t*>(a.variance),
                  static_cast<accscalar_t*>(a.distance),
                  static_cast<accscalar_t*>(a.regularization)};
  return {plan, global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch.images),
          a.slots, a.delta_var, tables};
}

template <typename accscalar_t, int kNorm, typename Channels>
cudaError_t launch_push(const ForwardTables<accscalar_t>& tables, Channels channels,
                        const Queue& queue) {
  if constexpr (channels() > 0) {
    using Block = PushBlock<channels()>;
    const int64_t blocks = tables.images() * ceil_div(tables.max_instances(), Block::kInstances);
    return launch(push_in_registers_kernel<channels()>,
                  {blocks, Block::kThreads, Block::kSharedBytes}, queue, tables);
  } else {
    return launch(push_kernel<accscalar_t, kNorm>,
                  {ceil_div(tables.rows() * 32, kRowThreads), kRowThreads}, queue, tables);
  }
}

// Pass 2.
template <typename scalar_t, int kNorm, typename Channels>
cudaError_t launch_sum_pull(const ForwardPass<scalar_t>& pass, Channels channels,
                            const Queue& queue) {
  const Grid grid = {pass.plan.ranges.blocks, kPassThreads, pass.plan.shared_bytes};
  if constexpr (channels() > 0) {
    return launch(sum_pull_in_registers_kernel<scalar_t, channels()>, grid, queue, pass);
  } else {
    return launch(sum_pull_kernel<scalar_t, kNorm>, grid, queue, pass);
  }
}

template <typename scalar_t, int kNorm>
cudaError_t launch_passes(const Batch& batch, const ForwardPass<scalar_t>& pass,
                          const Queue& queue) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  constexpr size_t kScratch = kRowThreads * sizeof(double);
  const ForwardTables<accscalar_t>& tables = pass.tables;
  const Grid pixels = {pass.plan.ranges.blocks, kPassThreads, pass.plan.shared_bytes};
  const Grid rows = {tables.rows(), kRowThreads, kScratch};
  const Grid images = {tables.images(), kRowThreads, kScratch};
  DISCLOSS_RETURN_IF_ERROR(launch(sum_pixels_kernel<scalar_t>, pixels, queue, pass));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_means_kernel<accscalar_t, kNorm>, rows, queue, tables));
  DISCLOSS_RETURN_IF_ERROR(
      (dispatch_channels<scalar_t, kNorm>(batch, tables.means, [&](auto channels) {
        DISCLOSS_RETURN_IF_ERROR((launch_push<accscalar_t, kNorm>(tables, channels, queue)));
        return launch_sum_pull<scalar_t, kNorm>(pass, channels, queue);
      })));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_pull_kernel<accscalar_t>, rows, queue, tables));
  return launch(finish_kernel<accscalar_t>, images, queue, tables);
}

// Ids and passes of a small batch.
template <typename scalar_t>
cudaError_t launch_small(const ForwardArguments& a, const IdTable& table,
                         const ForwardPass<scalar_t>& pass, const Queue& queue) {
  if constexpr (std::is_same_v<scalar_t, double>) {
    return cudaErrorNotSupported;  // is never small
  } else {
    const size_t shared_bytes = std::max(pass.plan.shared_bytes, kPassThreads * sizeof(double));
    const IdPass ids = {table, a.batch.images, pass.plan.ranges, a.labels};
    return launch(small_forward_kernel<scalar_t>,
                  {kClusterBlocks, kPassThreads, shared_bytes, kClusterBlocks}, queue, ids,
                  ignored_ids(a.ignore, 0), pass);
  }
}

}  // namespace

cudaError_t forward_workspace(const ForwardArguments& arguments, size_t* bytes) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(finish_kernel<float>, &device));
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
  DISCLOSS_RETURN_IF_ERROR(current_device(finish_kernel<float>, &device));
  return dispatch_scalar(batch.scalar, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using accscalar_t = typename Accumulate<scalar_t>::type;
    const bool one_launch = is_one_launch(device, arguments);
    const SumPlan plan = plan_sums<scalar_t>(device, batch, one_launch);
    const ForwardWorkspace w = carve_forward<accscalar_t>(arguments, plan, workspace);
    const ForwardPass<scalar_t> pass = forward_pass<scalar_t>(arguments, plan, w);
    const Queue queue = queue_of(device, stream);
    if (one_launch) {
      return launch_small(arguments, w.table, pass, queue);
    }
    const IdPass ids = id_pass(device, w.table, batch.images, batch.pixels, arguments.labels);
    DISCLOSS_RETURN_IF_ERROR(
        launch_ids(ids, arguments.ignore, arguments.slots, arguments.instances, queue));
    return dispatch_norm(batch.norm, [&](auto norm) {
      return launch_passes<scalar_t, norm_of(norm)>(batch, pass, queue);
    });
  });
}

}  // namespace discloss::cuda
