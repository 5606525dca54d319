// The backward pass: its workspace and the order of its launches.
#include <type_traits>

#include "common/cuda/launching.cuh"
#include "common/cuda/portability.cuh"
#include "common/cuda/tile.cuh"
#include "common/cuda/tuning.h"
#include "gradient_kernels.cuh"
#include "launch.h"
#include "plans.cuh"
#include "small_kernels.cuh"

namespace discloss::cuda {
namespace {

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

template <typename scalar_t>
GradientPass<scalar_t> gradient_pass(const BackwardArguments& a, const GradientPlan& plan,
                                     const BackwardWorkspace& w) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  const Batch& batch = a.batch;
  GradientTables<accscalar_t> tables = {};
  tables.images = batch.images.count;
  tables.max_instances = batch.max_instances;
  tables.channels = batch.channels;
  tables.instances = a.instances;
  tables.counts = a.counts;
  tables.means = static_cast<const accscalar_t*>(a.means);
  tables.pull = static_cast<const accscalar_t*>(a.pull);
  tables.push = static_cast<const accscalar_t*>(a.push);
  tables.weights = {a.alpha, a.beta, a.gamma};
  tables.upstreams = {a.loss, a.variance, a.distance, a.regularization};
  tables.factors = static_cast<accscalar_t*>(w.factors);
  tables.shared_gradients = static_cast<accscalar_t*>(w.shared_gradients);
  return {plan,
          batch.images,
          global(static_cast<const scalar_t*>(a.embeddings), batch.strides, batch.images),
          a.slots,
          a.delta_var,
          tables,
          global(static_cast<scalar_t*>(a.gradient), a.gradient_strides, batch.images)};
}

// Pass 3.
template <typename scalar_t, int kNorm>
cudaError_t launch_gradient(const Batch& batch, const GradientPass<scalar_t>& pass,
                            const Queue& queue) {
  const int64_t blocks = pass.plan.ranges.blocks;
  return dispatch_channels<scalar_t, kNorm>(batch, pass.tables.means, [&](auto channels) {
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
cudaError_t launch_passes(const Batch& batch, const Device& device,
                          const GradientPass<scalar_t>& pass, const Queue& queue) {
  using accscalar_t = typename Accumulate<scalar_t>::type;
  if constexpr (kNorm == 2 && !std::is_same_v<scalar_t, double>) {
    if (is_small(device, batch)) {
      return launch(small_backward_kernel<scalar_t>,
                    {kClusterBlocks, kPassThreads, pass.plan.shared_bytes, kClusterBlocks}, queue,
                    pass);
    }
  }
  const int64_t threads = 32 * batch.images.count * batch.max_instances;
  DISCLOSS_RETURN_IF_ERROR(launch(instance_gradients_kernel<accscalar_t, kNorm>,
                                  {ceil_div(threads, kRowThreads), kRowThreads}, queue,
                                  pass.tables));
  return launch_gradient<scalar_t, kNorm>(batch, pass, queue);
}

}  // namespace

cudaError_t backward_workspace(const BackwardArguments& arguments, size_t* bytes) {
  return dispatch_scalar(arguments.batch.scalar, [&](auto scalar) {
    using accscalar_t = typename Accumulate<decltype(scalar)>::type;
    *bytes = carve_backward<accscalar_t>(arguments, nullptr).bytes;
    return cudaSuccess;
  });
}

cudaError_t launch_backward(const BackwardArguments& arguments, void* workspace,
                            cudaStream_t stream) {
  const Batch& batch = arguments.batch;
  Device device = {};
  DISCLOSS_RETURN_IF_ERROR(current_device(gradient_kernel<float, 2>, &device));
  return dispatch_scalar(batch.scalar, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using accscalar_t = typename Accumulate<scalar_t>::type;
    const BackwardWorkspace w = carve_backward<accscalar_t>(arguments, workspace);
    const GradientPass<scalar_t> pass =
        gradient_pass<scalar_t>(arguments, plan_gradient<scalar_t>(device, batch), w);
    const Queue queue = queue_of(device, stream);
    return dispatch_norm(batch.norm, [&](auto norm) {
      return launch_passes<scalar_t, norm_of(norm)>(batch, device, pass, queue);
    });
  });
}

}  // namespace discloss::cuda
