// The kernels and launches of the phases of ids.cuh.
#include <algorithm>

#include "common/cuda/launching.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/ranges.cuh"
#include "common/cuda/tuning.h"
#include "ids.cuh"
#include "launch.h"

namespace discloss::cuda {
namespace {

__global__ void insert_ignored_kernel(IdTable table, int64_t images, IgnoredIds ignored) {
  follow_previous_kernel();
  insert_ignored(table, images, ignored);
}

__global__ void insert_ids_kernel(IdPass pass, bool must_fit) {
  follow_previous_kernel();
  insert_ids(pass, must_fit);
}

__global__ void rank_ids_kernel(IdTable table, int64_t images, int64_t* instances) {
  follow_previous_kernel();
  rank_ids(table, images, instances);
}

__global__ void assign_slots_kernel(IdPass pass, int32_t* slots) {
  follow_previous_kernel();
  assign_slots(pass, slots);
}

// count [B] receives the number of instances that insert_ids found.
__global__ void read_counts_kernel(IdTable table, int64_t images, int32_t* count) {
  follow_previous_kernel();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; b < images;
       b += step) {
    count[b] = table.last[b] + 1;
  }
}

// Phases 1 and 2, on a table that is cleared first.
cudaError_t launch_insert(const IdPass& pass, const IgnoreLabels& ignore, bool must_fit,
                          const Queue& queue) {
  if (pass.table.clear_bytes > 0) {
    DISCLOSS_RETURN_IF_ERROR(cudaMemsetAsync(
        pass.table.keys, 0xFF, static_cast<size_t>(pass.table.clear_bytes), queue.stream));
  }
  const Grid few = {std::min<int64_t>(pass.images.count, 1024), 32};
  for (int64_t first = 0; first < ignore.count; first += kIgnoredPerLaunch) {
    DISCLOSS_RETURN_IF_ERROR(launch(insert_ignored_kernel, few, queue, pass.table,
                                    pass.images.count, ignored_ids(ignore, first)));
  }
  return launch(insert_ids_kernel, {pass.ranges.blocks, kPassThreads}, queue, pass, must_fit);
}

IdTable carve_count(const CountArguments& a, void* base, size_t* bytes) {
  Workspace workspace(base);
  const IdTable table = take_table(workspace, a.images.count, a.limit, a.ignore.count);
  *bytes = workspace.bytes();
  return table;
}

}  // namespace

IdTable take_table(Workspace& workspace, int64_t images, int64_t limit, int64_t ignore_count) {
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
  table.clear_bytes = static_cast<int64_t>(workspace.bytes() - before);
  table.ids = workspace.take<int64_t>(images * limit);
  table.entries = workspace.take<int32_t>(images * limit);
  return table;
}

IgnoredIds ignored_ids(const IgnoreLabels& ignore, int64_t first) {
  IgnoredIds ignored = {};
  ignored.count = static_cast<int>(std::min<int64_t>(ignore.count - first, kIgnoredPerLaunch));
  std::copy_n(ignore.ids + first, ignored.count, ignored.ids);
  return ignored;
}

IdPass id_pass(const Device& device, const IdTable& table, const Images& images, int64_t pixels,
               const Labels& labels) {
  return {table, images, plan_ranges(pixels, device.multiprocessors * kIdBlocksPerMultiprocessor),
          labels};
}

cudaError_t launch_ids(const IdPass& pass, const IgnoreLabels& ignore, int32_t* slots,
                       int64_t* instances, const Queue& queue) {
  const int64_t images = pass.images.count;
  const int64_t threads = 32 * images * std::max<int64_t>(pass.table.limit, 1);
  DISCLOSS_RETURN_IF_ERROR(launch_insert(pass, ignore, true, queue));
  DISCLOSS_RETURN_IF_ERROR(launch(rank_ids_kernel, {ceil_div(threads, kRowThreads), kRowThreads},
                                  queue, pass.table, images, instances));
  return launch(assign_slots_kernel, {pass.ranges.blocks, kPassThreads}, queue, pass, slots);
}

cudaError_t count_workspace(const CountArguments& arguments, size_t* bytes) {
  carve_count(arguments, nullptr, bytes);
  return cudaSuccess;
}

cudaError_t launch_count(const CountArguments& a, void* workspace, cudaStream_t stream) {
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(read_counts_kernel, &device));
  const Queue queue = queue_of(device, stream);
  size_t bytes = 0;
  const IdTable table = carve_count(a, workspace, &bytes);
  const IdPass pass = id_pass(device, table, a.images, a.pixels, a.labels);
  DISCLOSS_RETURN_IF_ERROR(launch_insert(pass, a.ignore, false, queue));
  return launch(read_counts_kernel, {ceil_div(a.images.count, kRowThreads), kRowThreads}, queue,
                table, a.images.count, a.count);
}

}  // namespace discloss::cuda
