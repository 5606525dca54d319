// Workspace layout and pass order: between the binding and the kernels.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "common/cuda/portability.cuh"
#include "common/cuda/shares.cuh"
#include "common/cuda/tile.cuh"
#include "forward_pass.cuh"
#include "gradient_kernels.cuh"
#include "ids_kernels.cuh"
#include "launch.h"
#include "means_kernels.cuh"
#include "offsets_kernels.cuh"
#include "plans.cuh"
#include "pull_kernels.cuh"
#include "push_kernels.cuh"
#include "small_kernels.cuh"
#include "sums.cuh"

namespace discloss::cuda {
namespace {

constexpr int kRowThreads = 128;  // of kernels that own an instance or an image
constexpr size_t kAlignment = 256;

#define DISCLOSS_RETURN_IF_ERROR(expression)  \
  do {                                        \
    const cudaError_t error_ = (expression);  \
    if (error_ != cudaSuccess) return error_; \
  } while (false)

// --- device, launches, workspace -----------------------------------------------------------------

cudaError_t current_device(Device* device) {
  int index = 0;
  DISCLOSS_RETURN_IF_ERROR(cudaGetDevice(&index));
  DISCLOSS_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index));
  // Any kernel: all are compiled for the same architectures.
  cudaFuncAttributes kernel = {};
  DISCLOSS_RETURN_IF_ERROR(
      cudaFuncGetAttributes(&kernel, reinterpret_cast<const void*>(read_counts_kernel)));
  device->architecture = kernel.ptxVersion;
  DISCLOSS_RETURN_IF_ERROR(cudaDeviceGetAttribute(&device->shared_bytes,
                                                  cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  return cudaDeviceGetAttribute(&device->shared_bytes_per_multiprocessor,
                                cudaDevAttrMaxSharedMemoryPerMultiprocessor, index);
}

// Where kernels are launched. Dependent ones wait for those ahead themselves, so that their blocks
// may come early (follow_previous_kernel).
struct Queue {
  cudaStream_t stream;
  int most_shared_bytes = 0;  // of a block
  bool dependent = false;
};

Queue queue_of(const Device& device, cudaStream_t stream) {
  return {stream, device.shared_bytes,
          DISCLOSS_DEPENDENT_LAUNCHES && device.architecture >= kFirstWithClusters};
}

// Launches nothing for an empty grid. More than 48 KB of dynamic shared memory must be asked for;
// by all threads of the process for the same kernel, so each allows as much as there is.
template <typename... Parameters, typename... Given>
cudaError_t launch_clusters(int cluster, void (*kernel)(Parameters...), int64_t blocks, int threads,
                            size_t shared_bytes, const Queue& queue, Given&&... arguments) {
  if (blocks == 0) {
    return cudaSuccess;
  }
  if (shared_bytes > 48 * 1024) {
    DISCLOSS_RETURN_IF_ERROR(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  queue.most_shared_bytes));
  }
  if (blocks > INT32_MAX) {
    return cudaErrorInvalidConfiguration;
  }
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  config.attrs = attributes;
  if (queue.dependent) {
    cudaLaunchAttribute& dependent = attributes[config.numAttrs++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& clusters = attributes[config.numAttrs++];
    clusters.id = cudaLaunchAttributeClusterDimension;
    clusters.val.clusterDim.x = static_cast<unsigned>(cluster);
    clusters.val.clusterDim.y = 1;
    clusters.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Given>(arguments)...);
}

template <typename... Parameters, typename... Given>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                   const Queue& queue, Given&&... arguments) {
  return launch_clusters(1, kernel, blocks, threads, shared_bytes, queue,
                         std::forward<Given>(arguments)...);
}

// Hands out aligned pieces of a workspace; with a null base it only measures.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

template <typename Function>
cudaError_t dispatch(ScalarType type, Function function) {
  switch (type) {
    case ScalarType::kFloat32:
      return function(float{});
    case ScalarType::kFloat64:
      return function(double{});
    case ScalarType::kFloat16:
      return function(__half{});
    default:
      return function(__nv_bfloat16{});
  }
}

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
                          const Shares& shares, const Labels& labels, const int64_t* ignore_labels,
                          int64_t ignore_count, bool must_fit, const Queue& queue) {
  if (clear_bytes > 0) {
    DISCLOSS_RETURN_IF_ERROR(cudaMemsetAsync(table.keys, 0xFF, clear_bytes, queue.stream));
  }
  for (int64_t first = 0; first < ignore_count; first += kIgnoredPerLaunch) {
    const IgnoredIds ignored = ignored_ids(ignore_labels + first, ignore_count - first);
    DISCLOSS_RETURN_IF_ERROR(launch(insert_ignored_kernel, std::min<int64_t>(images.count, 1024),
                                    32, 0, queue, table, images.count, ignored));
  }
  return launch(insert_ids_kernel, shares.blocks, kPassThreads, 0, queue, table, images, shares,
                labels, must_fit);
}

// All four phases: a slot for every pixel, and the number of instances.
cudaError_t launch_ids(const ForwardArguments& a, const Device& device, const IdTable& table,
                       size_t clear_bytes, const Queue& queue) {
  const Images& images = a.batch.images;
  const Shares shares = plan_ids(device, a.batch.pixels);
  const int64_t warps = images.count * std::max<int64_t>(a.batch.max_instances, 1);
  DISCLOSS_RETURN_IF_ERROR(launch_insert(table, clear_bytes, images, shares, a.labels,
                                         a.ignore_labels, a.ignore_count, true, queue));
  DISCLOSS_RETURN_IF_ERROR(launch(rank_ids_kernel, ceil_div(warps * 32, kRowThreads), kRowThreads,
                                  0, queue, table, images.count, a.instances));
  return launch(assign_slots_kernel, shares.blocks, kPassThreads, 0, queue, table, images, shares,
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
  w.partial_sums = workspace.take<double>((plan.shares.blocks + images) * a.batch.max_instances *
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
          global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch),
          {w.partial_sums, batch.images, plan.shares, batch.max_instances, batch.channels},
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
      return launch(push_in_registers_kernel<channels()>,
                    images * ceil_div(limit, Block::kInstances), Block::kThreads,
                    Block::kSharedBytes, queue, limit, pass.instances, pass.means, pass.mean_norms,
                    pass.delta_dist, pass.push, pass.push_sums);
    } else {
      return launch(push_kernel<accscalar_t, kNorm>, ceil_div(pass.rows() * 32, kRowThreads),
                    kRowThreads, 0, queue, images, limit, batch.channels, pass.instances,
                    pass.means, pass.delta_dist, pass.push, pass.push_sums);
    }
  });
}

// Pass 2.
template <typename scalar_t, int kNorm>
cudaError_t launch_sum_pull(const Batch& batch, const ForwardPass<scalar_t>& pass,
                            const Queue& queue) {
  const int64_t blocks = pass.plan.shares.blocks;
  return dispatch_channels<scalar_t, kNorm>(batch, pass.means, [&](auto channels) {
    if constexpr (channels() > 0) {
      return launch(sum_pull_in_registers_kernel<scalar_t, channels()>, blocks, kPassThreads,
                    pass.plan.shared_bytes, queue, pass.plan, pass.embeddings, pass.slots,
                    pass.means, pass.delta_var, pass.partials);
    } else {
      return launch(sum_pull_kernel<scalar_t, kNorm>, blocks, kPassThreads, pass.plan.shared_bytes,
                    queue, pass.plan, batch.channels, pass.embeddings, pass.slots, pass.means,
                    pass.delta_var, pass.partials);
    }
  });
}

template <typename scalar_t, int kNorm>
cudaError_t launch_passes(const Batch& batch, const ForwardPass<scalar_t>& pass,
                          const Queue& queue) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  constexpr size_t kScratch = kRowThreads * sizeof(double);
  DISCLOSS_RETURN_IF_ERROR(launch(sum_pixels_kernel<scalar_t>, pass.plan.shares.blocks,
                                  kPassThreads, pass.plan.shared_bytes, queue, pass.plan,
                                  batch.channels, pass.embeddings, pass.slots, pass.partials));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_means_kernel<accscalar_t, kNorm>, pass.rows(), kRowThreads,
                                  kScratch, queue, pass.partials, pass.counts, pass.means,
                                  pass.mean_norms));
  DISCLOSS_RETURN_IF_ERROR((launch_push<scalar_t, kNorm>(batch, pass, queue)));
  DISCLOSS_RETURN_IF_ERROR((launch_sum_pull<scalar_t, kNorm>(batch, pass, queue)));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_pull_kernel<accscalar_t>, pass.rows(), kRowThreads,
                                  kScratch, queue, pass.partials, pass.instances, pass.counts,
                                  pass.pull, pass.variance_sums));
  return launch(finish_kernel<accscalar_t>, batch.images.count, kRowThreads, kScratch, queue,
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
    return launch_clusters(
        kClusterBlocks, small_forward_kernel<scalar_t>, kClusterBlocks, kPassThreads,
        std::max(pass.plan.shared_bytes, kPassThreads * sizeof(double)), queue, w.table, words,
        ignored_ids(a.ignore_labels, a.ignore_count), a.labels, pass);
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
  const int64_t blocks = pass.plan.shares.blocks;
  return dispatch_channels<scalar_t, kNorm>(batch, pass.means, [&](auto channels) {
    if constexpr (channels() > 0) {
      return launch(gradient_in_registers_kernel<scalar_t, channels()>, blocks, kPassThreads, 0,
                    queue, pass);
    } else {
      return launch(gradient_kernel<scalar_t, kNorm>, blocks, kPassThreads, pass.plan.shared_bytes,
                    queue, pass);
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
      global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch),
      a.slots,
      instances.means,
      factors,
      shared_gradients,
      batch.max_instances,
      batch.channels,
      a.delta_var,
      global(static_cast<scalar_t*>(a.gradient), a.gradient_strides, batch)};
  const Weights weights = {a.alpha, a.beta, a.gamma};
  const Upstreams upstreams = {a.loss, a.variance, a.distance, a.regularization};
  if constexpr (kNorm == 2 && !std::is_same_v<scalar_t, double>) {
    if (is_small(device, batch)) {
      return launch_clusters(kClusterBlocks, small_backward_kernel<scalar_t>, kClusterBlocks,
                             kPassThreads, pass.plan.shared_bytes, queue, instances, weights,
                             upstreams, factors, shared_gradients, pass);
    }
  }
  DISCLOSS_RETURN_IF_ERROR(launch(
      instance_gradients_kernel<accscalar_t, kNorm>, ceil_div(rows * 32, kRowThreads), kRowThreads,
      0, queue, instances, images, weights, upstreams, factors, shared_gradients));
  return launch_gradient<scalar_t, kNorm>(batch, pass, queue);
}

}  // namespace

cudaError_t forward_workspace(const ForwardArguments& arguments, size_t* bytes) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(&device));
  return dispatch(arguments.batch.scalar, [&](auto scalar) {
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
  DISCLOSS_RETURN_IF_ERROR(current_device(&device));
  return dispatch(batch.scalar, [&](auto scalar) {
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
  return dispatch(arguments.batch.scalar, [&](auto scalar) {
    using accscalar_t = typename Accumulate<decltype(scalar)>::type;
    *bytes = carve_backward<accscalar_t>(arguments, nullptr).bytes;
    return cudaSuccess;
  });
}

cudaError_t launch_backward(const BackwardArguments& arguments, void* workspace,
                            cudaStream_t stream) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(&device));
  return dispatch(arguments.batch.scalar, [&](auto scalar) {
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
  DISCLOSS_RETURN_IF_ERROR(current_device(&device));
  const Queue queue = queue_of(device, stream);
  const IdTable table = carve_count(arguments, workspace, &clear_bytes, &bytes);
  DISCLOSS_RETURN_IF_ERROR(launch_insert(
      table, clear_bytes, arguments.images, plan_ids(device, arguments.pixels), arguments.labels,
      arguments.ignore_labels, arguments.ignore_count, false, queue));
  return launch(read_counts_kernel, ceil_div(arguments.images.count, kRowThreads), kRowThreads, 0,
                queue, table, arguments.images.count, arguments.count);
}

cudaError_t refuse_capture(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  DISCLOSS_RETURN_IF_ERROR(cudaStreamIsCapturing(stream, &status));
  return status == cudaStreamCaptureStatusNone ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t launch_check_offsets(const int64_t* offsets, int64_t images, int64_t total,
                                 cudaStream_t stream) {
  return launch(check_offsets_kernel, ceil_div(images + 1, kRowThreads), kRowThreads, 0,
                Queue{stream}, offsets, images, total);
}

cudaError_t launch_batch_offsets(const int64_t* batch, int64_t total, int64_t images,
                                 int64_t* offsets, cudaStream_t stream) {
  return launch(batch_offsets_kernel, ceil_div(total + 1, kRowThreads), kRowThreads, 0,
                Queue{stream}, batch, total, images, offsets);
}

}  // namespace discloss::cuda
