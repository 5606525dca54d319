// Grid choice, workspace layout and pass order: everything between the binding and the kernels.
#include <algorithm>
#include <utility>

#include "gradient_kernels.cuh"
#include "ids_kernels.cuh"
#include "launch.h"
#include "means_kernels.cuh"
#include "offsets_kernels.cuh"
#include "portability.cuh"
#include "pull_kernels.cuh"
#include "push_kernels.cuh"
#include "sums.cuh"
#include "tile.cuh"

namespace discloss::cuda {
namespace {

// What benchmarks/run_on_gpu.sh compares: builds may choose other values.
#ifndef DISCLOSS_TILE_KILOBYTES
#define DISCLOSS_TILE_KILOBYTES 36  // 16 float channels of 512 pixels
#endif
#ifndef DISCLOSS_BLOCKS_PER_MULTIPROCESSOR
#define DISCLOSS_BLOCKS_PER_MULTIPROCESSOR 4
#endif

constexpr int kTileThreads = 256;
constexpr int kRowThreads = 128;  // of kernels that own an instance or an image
constexpr int kMaxTilePixels = 512;
constexpr int kMaxTileChannels = 64;
constexpr int kMaxGroups = 8;
constexpr size_t kTileBytes = DISCLOSS_TILE_KILOBYTES * 1024;
constexpr size_t kGroupBytes = 32 * 1024;  // of accumulators; leaves room for three blocks an SM
constexpr int kBlocksPerMultiprocessor = DISCLOSS_BLOCKS_PER_MULTIPROCESSOR;
constexpr int64_t kMinPartialBytes = 1 << 20;
constexpr size_t kAlignment = 256;

#define DISCLOSS_RETURN_IF_ERROR(expression)  \
  do {                                        \
    const cudaError_t error_ = (expression);  \
    if (error_ != cudaSuccess) return error_; \
  } while (false)

// --- device, launches, workspace -----------------------------------------------------------------

struct Device {
  int multiprocessors;
  int shared_bytes;  // the most a block may ask for
};

cudaError_t current_device(Device* device) {
  int index = 0;
  DISCLOSS_RETURN_IF_ERROR(cudaGetDevice(&index));
  DISCLOSS_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, index));
  return cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                index);
}

// Launches nothing for an empty grid. More than 48 KB of dynamic shared memory must be asked for.
template <typename... Parameters, typename... Given>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                   cudaStream_t stream, Given&&... arguments) {
  if (blocks == 0) {
    return cudaSuccess;
  }
  if (shared_bytes > 48 * 1024) {
    DISCLOSS_RETURN_IF_ERROR(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(shared_bytes)));
  }
  if (blocks > INT32_MAX) {
    return cudaErrorInvalidConfiguration;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Given>(arguments)...);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// --- plans ---------------------------------------------------------------------------------------

// Tiles of at most kTileBytes; `extra_rows` are rows beside the channels.
template <typename accscalar_t>
TileShape plan_tile(int64_t channels, int extra_rows) {
  const int rows = static_cast<int>(std::min<int64_t>(channels, kMaxTileChannels));
  int pixels = kMaxTilePixels;
  while (pixels > 32 && (rows + extra_rows) * pixels * sizeof(accscalar_t) > kTileBytes) {
    pixels /= 2;
  }
  return {pixels, rows, pixels + 1};
}

int64_t plan_blocks_per_image(const Device& device, const Batch& batch, const TileShape& tile) {
  const int64_t wanted = ceil_div(device.multiprocessors * kBlocksPerMultiprocessor,
                                  std::max<int64_t>(batch.images.count, 1));
  const int64_t tiles = batch.images.offsets == nullptr ? ceil_div(batch.images.pixels, tile.pixels)
                                                        : ceil_div(batch.pixels, tile.pixels);
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(tiles, 1));
}

template <typename scalar_t>
SumPlan plan_sums(const Device& device, const Batch& batch) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  SumPlan plan = {};
  plan.tile = plan_tile<accscalar_t>(batch.channels, 2);
  const int64_t row_bytes = batch.max_instances * (batch.channels + 1) * sizeof(double);
  const int64_t room =
      device.shared_bytes - static_cast<int64_t>(sum_shared_bytes<accscalar_t>(plan.tile, 0));
  const int64_t most_groups =
      std::min<int64_t>(kMaxGroups, kTileThreads / (plan.tile.channels + 1));
  plan.shared_accumulators = row_bytes <= room;
  plan.groups = 1;
  if (plan.shared_accumulators && row_bytes > 0) {
    const int64_t bytes = std::min<int64_t>(room, kGroupBytes);
    plan.groups = static_cast<int>(std::clamp<int64_t>(bytes / row_bytes, 1, most_groups));
  }
  plan.shared_bytes = sum_shared_bytes<accscalar_t>(
      plan.tile, plan.shared_accumulators ? plan.groups * row_bytes / sizeof(double) : 0);
  // Partial rows beyond a quarter of the embedding would cost more than the blocks they serve gain.
  const int64_t allowed =
      std::max<int64_t>(kMinPartialBytes, batch.pixels * batch.channels * sizeof(scalar_t) / 4);
  const int64_t affordable = allowed / std::max<int64_t>(batch.images.count * row_bytes, 1);
  plan.blocks_per_image =
      std::clamp<int64_t>(affordable, 1, plan_blocks_per_image(device, batch, plan.tile));
  return plan;
}

template <typename scalar_t>
GradientPlan plan_gradient(const Device& device, const Batch& batch) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  GradientPlan plan = {};
  plan.tile = plan_tile<accscalar_t>(batch.channels, 1);
  plan.blocks_per_image = plan_blocks_per_image(device, batch, plan.tile);
  plan.shared_bytes =
      (plan.tile.channels * plan.tile.pitch + plan.tile.pixels) * sizeof(accscalar_t) +
      plan.tile.pixels * sizeof(int32_t);
  return plan;
}

// 16-byte accesses need an aligned start, aligned lines, and pieces that do not straddle lines.
template <typename pointer_t>
Global<pointer_t> global(pointer_t data, const Strides& strides, const Batch& batch) {
  constexpr int64_t kVector = 16 / sizeof(*data);
  const bool along_pixels = strides.pixel == 1;
  const int64_t line = along_pixels ? strides.channel : strides.pixel;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && line % kVector == 0;
  const bool images_aligned = batch.images.offsets == nullptr
                                  ? batch.images.count < 2 || strides.image % kVector == 0
                                  : !along_pixels;
  return {data, strides, aligned && images_aligned};
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

// Phases 1 and 2 of ids_kernels.cuh.
cudaError_t launch_insert(const IdTable& table, size_t clear_bytes, const Images& images,
                          int64_t pixels, const Labels& labels, const int64_t* ignore_labels,
                          int64_t ignore_count, bool must_fit, cudaStream_t stream) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(&device));
  DISCLOSS_RETURN_IF_ERROR(cudaMemsetAsync(table.keys, 0xFF, clear_bytes, stream));
  for (int64_t first = 0; first < ignore_count; first += kIgnoredPerLaunch) {
    IgnoredIds ignored = {};
    ignored.count = static_cast<int>(std::min<int64_t>(ignore_count - first, kIgnoredPerLaunch));
    std::copy_n(ignore_labels + first, ignored.count, ignored.ids);
    DISCLOSS_RETURN_IF_ERROR(launch(insert_ignored_kernel, std::min<int64_t>(images.count, 1024),
                                    32, 0, stream, table, images.count, ignored));
  }
  const int64_t wanted = ceil_div(device.multiprocessors * kBlocksPerMultiprocessor,
                                  std::max<int64_t>(images.count, 1));
  const int64_t per_image = images.offsets == nullptr ? images.pixels : pixels;
  const int64_t blocks_per_image =
      std::clamp<int64_t>(wanted, 1, std::max<int64_t>(ceil_div(per_image, kTileThreads), 1));
  return launch(insert_ids_kernel, images.count * blocks_per_image, kTileThreads, 0, stream, table,
                images, labels, blocks_per_image, must_fit);
}

// --- forward -------------------------------------------------------------------------------------

struct ForwardWorkspace {
  IdTable table;
  size_t clear_bytes;
  double* partial_rows;   // [B, blocks_per_image, M, D + 1]
  double* variance_sums;  // [B, M]
  double* push_sums;      // [B, M]
  double* mean_norms;     // [B, M]
  size_t bytes;
};

ForwardWorkspace carve_forward(const ForwardArguments& a, const SumPlan& plan, void* base) {
  Workspace workspace(base);
  ForwardWorkspace w = {};
  const int64_t images = a.batch.images.count, rows = images * a.batch.max_instances;
  w.table = take_table(workspace, images, a.batch.max_instances, a.ignore_count, &w.clear_bytes);
  w.partial_rows = workspace.take<double>(plan.blocks_per_image * rows * (a.batch.channels + 1));
  w.variance_sums = workspace.take<double>(rows);
  w.push_sums = workspace.take<double>(rows);
  w.mean_norms = workspace.take<double>(rows);
  w.bytes = workspace.bytes();
  return w;
}

template <typename scalar_t, int kNorm>
cudaError_t forward_passes(const ForwardArguments& a, const SumPlan& plan,
                           const ForwardWorkspace& w, cudaStream_t stream) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const Batch& batch = a.batch;
  const int64_t images = batch.images.count, rows = images * batch.max_instances;
  const int64_t tile_blocks = images * plan.blocks_per_image;
  const auto embeddings = global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch);
  const Partials partials = {w.partial_rows, plan.blocks_per_image, batch.max_instances,
                             batch.channels + 1};
  auto* means = static_cast<accscalar_t*>(a.means);
  constexpr size_t kScratch = kRowThreads * sizeof(double);

  DISCLOSS_RETURN_IF_ERROR(launch(rank_ids_kernel,
                                  ceil_div(std::max<int64_t>(rows, images), kRowThreads),
                                  kRowThreads, 0, stream, w.table, images, a.instances));
  DISCLOSS_RETURN_IF_ERROR(launch(sum_pixels_kernel<scalar_t>, tile_blocks, kTileThreads,
                                  plan.shared_bytes, stream, plan, batch.images, batch.channels,
                                  a.labels, w.table, embeddings, a.slots, partials));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_means_kernel<accscalar_t>, rows, kRowThreads, kScratch,
                                  stream, partials, a.counts, means));
  DISCLOSS_RETURN_IF_ERROR(launch(push_kernel<accscalar_t, kNorm>, rows, kRowThreads,
                                  kScratch + kRowThreads * sizeof(accscalar_t), stream,
                                  batch.max_instances, batch.channels, a.instances, means,
                                  a.delta_dist, static_cast<accscalar_t*>(a.push), w.push_sums,
                                  w.mean_norms));
  DISCLOSS_RETURN_IF_ERROR(launch(sum_pull_kernel<scalar_t, kNorm>, tile_blocks, kTileThreads,
                                  plan.shared_bytes, stream, plan, batch.images, batch.channels,
                                  embeddings, a.slots, means, a.delta_var, partials));
  DISCLOSS_RETURN_IF_ERROR(launch(reduce_pull_kernel<accscalar_t>, rows, kRowThreads, kScratch,
                                  stream, partials, a.instances, a.counts,
                                  static_cast<accscalar_t*>(a.pull), w.variance_sums));
  const TermSums sums = {w.variance_sums, w.push_sums, w.mean_norms};
  return launch(finish_kernel<accscalar_t>, images, kRowThreads, kScratch, stream, sums,
                batch.max_instances, a.instances, a.alpha, a.beta, a.gamma,
                static_cast<accscalar_t*>(a.loss), static_cast<accscalar_t*>(a.variance),
                static_cast<accscalar_t*>(a.distance), static_cast<accscalar_t*>(a.regularization));
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
cudaError_t backward_passes(const BackwardArguments& a, const GradientPlan& plan, void* workspace,
                            cudaStream_t stream) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const Batch& batch = a.batch;
  const int64_t images = batch.images.count, rows = images * batch.max_instances;
  const BackwardWorkspace w = carve_backward<accscalar_t>(a, workspace);
  const Instances<accscalar_t> instances = {batch.max_instances,
                                            batch.channels,
                                            a.instances,
                                            a.counts,
                                            static_cast<const accscalar_t*>(a.means),
                                            static_cast<const accscalar_t*>(a.pull),
                                            static_cast<const accscalar_t*>(a.push)};
  auto* factors = static_cast<accscalar_t*>(w.factors);
  auto* shared_gradients = static_cast<accscalar_t*>(w.shared_gradients);
  const Weights weights = {a.alpha, a.beta, a.gamma};
  const Upstreams upstreams = {a.loss, a.variance, a.distance, a.regularization};
  DISCLOSS_RETURN_IF_ERROR(launch(
      instance_gradients_kernel<accscalar_t, kNorm>, ceil_div(rows * 32, kRowThreads), kRowThreads,
      0, stream, instances, images, weights, upstreams, factors, shared_gradients));
  return launch(gradient_kernel<scalar_t, kNorm>, images * plan.blocks_per_image, kTileThreads,
                plan.shared_bytes, stream, plan, batch.images, batch.channels, batch.max_instances,
                global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch), a.slots,
                instances.means, factors, shared_gradients, a.delta_var,
                global(static_cast<scalar_t*>(a.gradient), a.gradient_strides, batch));
}

}  // namespace

cudaError_t forward_workspace(const ForwardArguments& arguments, size_t* bytes) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(&device));
  return dispatch(arguments.batch.scalar, [&](auto scalar) {
    const SumPlan plan = plan_sums<decltype(scalar)>(device, arguments.batch);
    *bytes = carve_forward(arguments, plan, nullptr).bytes;
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
    const SumPlan plan = plan_sums<scalar_t>(device, batch);
    const ForwardWorkspace w = carve_forward(arguments, plan, workspace);
    DISCLOSS_RETURN_IF_ERROR(launch_insert(w.table, w.clear_bytes, batch.images, batch.pixels,
                                           arguments.labels, arguments.ignore_labels,
                                           arguments.ignore_count, true, stream));
    return dispatch_norm(batch.norm, [&](auto norm) {
      return forward_passes<scalar_t, norm_of(norm)>(arguments, plan, w, stream);
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
    const GradientPlan plan = plan_gradient<scalar_t>(device, arguments.batch);
    return dispatch_norm(arguments.batch.norm, [&](auto norm) {
      return backward_passes<scalar_t, norm_of(norm)>(arguments, plan, workspace, stream);
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
  const IdTable table = carve_count(arguments, workspace, &clear_bytes, &bytes);
  DISCLOSS_RETURN_IF_ERROR(launch_insert(table, clear_bytes, arguments.images, arguments.pixels,
                                         arguments.labels, arguments.ignore_labels,
                                         arguments.ignore_count, false, stream));
  return launch(read_counts_kernel, ceil_div(arguments.images.count, kRowThreads), kRowThreads, 0,
                stream, table, arguments.images.count, arguments.count);
}

cudaError_t refuse_capture(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  DISCLOSS_RETURN_IF_ERROR(cudaStreamIsCapturing(stream, &status));
  return status == cudaStreamCaptureStatusNone ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t launch_check_offsets(const int64_t* offsets, int64_t images, int64_t total,
                                 cudaStream_t stream) {
  return launch(check_offsets_kernel, ceil_div(images + 1, kRowThreads), kRowThreads, 0, stream,
                offsets, images, total);
}

cudaError_t launch_batch_offsets(const int64_t* batch, int64_t total, int64_t images,
                                 int64_t* offsets, cudaStream_t stream) {
  return launch(batch_offsets_kernel, ceil_div(total + 1, kRowThreads), kRowThreads, 0, stream,
                batch, total, images, offsets);
}

}  // namespace discloss::cuda
