// Kernels for the interpreter's own test: arithmetic to compare with numpy's, and mistakes that
// must be reported.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace {

constexpr unsigned kFullMask = 0xffffffffu;

// The mistakes; test_interpreter.py has the same list.
enum Mistake {
  kNone,
  kNoBarrier,
  kNotInitialised,
  kReadOutsideBuffer,
  kWriteOutsideBuffer,
  kOutsideSharedMemory,
  kMisaligned,
  kTwoBarriers,  // of one warp
  kAbsentLane,
  kNotInMask,
  kDeadlock,
  kTrap,
};

// out[i] = the sum of in[0] to in[i], of 256 numbers: by shuffles and through shared memory.
__global__ void __launch_bounds__(256) scan_kernel(const float* in, float* out, int mistake) {
  extern __shared__ __align__(16) float of_warps[];
  const unsigned i = threadIdx.x, lane = i % 32;
  float sum = in[i];
  for (unsigned step = 1; step < 32; step *= 2) {
    const float other = __shfl_up_sync(kFullMask, sum, step);
    sum += lane >= step ? other : 0.0f;
  }
  if (lane == 31 && mistake != kNotInitialised) {
    of_warps[i / 32] = sum;
  }
  if (mistake != kNoBarrier) {
    __syncthreads();
  }
  for (unsigned warp = 0; warp < i / 32; ++warp) {
    sum += of_warps[warp];
  }
  out[i] = sum;
}

// What a thread of a warp may do wrong, alone or with others.
__global__ void mistake_kernel(float* data, int mistake) {
  extern __shared__ __align__(16) float of_warps[];
  const unsigned i = threadIdx.x, lane = i % 32;
  switch (mistake) {
    case kReadOutsideBuffer:
      data[i] = data[i + 1];
      break;
    case kWriteOutsideBuffer:
      data[i + 1] = 1;
      break;
    case kOutsideSharedMemory:
      of_warps[i + 1] = data[i];
      data[i] = of_warps[i];
      break;
    case kMisaligned: {
      const float2 pair = *reinterpret_cast<const float2*>(data + 1);
      data[i] = pair.x + pair.y;
      break;
    }
    case kTwoBarriers:
      if (lane < 16) {
        __syncthreads();
        data[i] = 1;
      } else {
        data[i] = 2;
        __syncthreads();
      }
      break;
    case kAbsentLane:
      if (lane < 16) {
        data[i] = __shfl_sync(0xffffu, data[i], 20);
      }
      break;
    case kNotInMask:
      data[i] = __shfl_sync(0xffffu, data[i], 3);
      break;
    case kDeadlock:
      if (lane < 16) {
        data[i] = __shfl_sync(kFullMask, data[i], 3);
      } else {
        __syncthreads();
      }
      break;
    case kTrap:
      if (data[i] == 0) {
        printf("a number is 0\n");
        __trap();
      }
      break;
    default:
      data[i] += 1;
  }
}

// The interpreter knows no sine.
__global__ void sine_kernel(float* data) { data[threadIdx.x] = __sinf(data[threadIdx.x]); }

// Each block of a cluster writes its number, then reads those of the others.
__global__ void cluster_kernel(int* numbers, int* sums, int cluster, int mistake) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const int block = static_cast<int>(blockIdx.x), first = block / cluster * cluster;
  numbers[block] = block;
  if (mistake == 1) {
    __cluster_barrier_wait();
  } else if (mistake == 2) {
    __cluster_barrier_arrive();
    __cluster_barrier_arrive();
  } else if (mistake != 3) {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
  }
  int sum = 0;
  for (int other = first; other < first + cluster; ++other) {
    sum += *static_cast<volatile int*>(numbers + other);
  }
  sums[block] = sum;
#endif
}

struct Numbers {
  const float *a, *b, *c;
  const std::int32_t *i, *j;
};

// out[k, n]: the k-th function of the n-th numbers, as bits.
__global__ void arithmetic_kernel(Numbers in, int count, std::uint32_t* out) {
  const int n = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (n >= count) {
    return;
  }
  const float a = in.a[n], b = in.b[n], c = in.c[n];
  const std::int32_t i = in.i[n], j = in.j[n];
  const auto u = static_cast<std::uint32_t>(i), v = static_cast<std::uint32_t>(j);
  const std::uint32_t results[] = {
      __float_as_uint(a + b),
      __float_as_uint(a - b),
      __float_as_uint(a * b),
      __float_as_uint(fmaf(a, b, c)),
      __float_as_uint(a / b),
      __float_as_uint(sqrtf(fabsf(a))),
      static_cast<std::uint32_t>(a < b) | static_cast<std::uint32_t>(a == c) << 1 |
          static_cast<std::uint32_t>(!(a >= b)) << 2,
      static_cast<std::uint32_t>(i + j),
      static_cast<std::uint32_t>(i * j),
      static_cast<std::uint32_t>(__mulhi(i, j)),
      __umulhi(u, v),
      static_cast<std::uint32_t>(i / (j | 1)),
      u % (v | 1),
      static_cast<std::uint32_t>(min(i, j)),
      max(u, v),
      u << (v % 40),
      static_cast<std::uint32_t>(i >> (v % 32)),
      __brev(u),
      static_cast<std::uint32_t>(__popc(u)),
      static_cast<std::uint32_t>(__clz(i)),
      __byte_perm(u, v, 0x2615),
      static_cast<std::uint32_t>(static_cast<std::int64_t>(i) * j >> 13),
      __half_as_ushort(__float2half_rn(a)),
      __bfloat16_as_ushort(__float2bfloat16_rn(a)),
      __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(u)))),
      __float_as_uint(__bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(u)))),
      __float_as_uint(static_cast<float>(i)),
      __float_as_uint(static_cast<float>(static_cast<double>(a) * b)),
      static_cast<std::uint32_t>(static_cast<std::int64_t>(static_cast<double>(a))),
  };
  for (std::size_t k = 0; k < sizeof results / sizeof *results; ++k) {
    out[k * static_cast<std::size_t>(count) + static_cast<std::size_t>(n)] = results[k];
  }
}

template <typename... Parameters, typename... Given>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, std::size_t shared_bytes,
                   int cluster, Given... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = reinterpret_cast<cudaStream_t>(0xD15C);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

#define SAMPLE extern "C" __attribute__((visibility("default"))) int

SAMPLE sample_scan(const float* in, float* out, int mistake) {
  return launch(scan_kernel, 1, 256, 8 * sizeof(float), 1, in, out, mistake);
}
SAMPLE sample_mistake(float* data, int mistake) {
  return launch(mistake_kernel, 1, 64, 64 * sizeof(float), 1, data, mistake);
}
SAMPLE sample_sine(float* data) { return launch(sine_kernel, 1, 64, 0, 1, data); }
SAMPLE sample_cluster(int* numbers, int* sums, int blocks, int cluster, int mistake) {
  return launch(cluster_kernel, blocks, 32, 0, cluster, numbers, sums, cluster, mistake);
}
SAMPLE sample_arithmetic(const float* a, const float* b, const float* c, const std::int32_t* i,
                         const std::int32_t* j, int count, std::uint32_t* out) {
  return launch(arithmetic_kernel, (count + 127) / 128, 128, 0, 1, Numbers{a, b, c, i, j}, count,
                out);
}
