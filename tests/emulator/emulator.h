// What a kernel needs of CUDA, on the host: NVIDIA's own headers give the types, the vector types
// and the half precisions; this header gives the built-in variables, synchronisation, warp
// operations and atomics.
//
// Every CUDA thread is a fiber (fiber.h); device.cpp decides which of them runs. A built-in that is
// not here is not used by the kernels, and does not compile. One file, as a kernel includes none of
// its own for the built-ins.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

// Words of CUDA's language that NVIDIA's headers leave without a meaning for a host compiler.
#undef __forceinline__
#define __forceinline__ inline
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "only dynamic shared memory can be emulated");

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

namespace emulator {

inline constexpr unsigned kWarpSize = 32;

// Where a kernel calls a built-in: what the reports name, and what the threads that meet there must
// agree on.
struct Location {
  const char* file = "";
  unsigned line = 0;
  Location() = default;
  Location(const char* in_file, unsigned at_line) : file(in_file), line(at_line) {}
  Location(const std::source_location& here) : file(here.file_name()), line(here.line()) {}
  bool operator==(const Location& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
};

// --- what device.cpp and barriers.cpp do for the built-ins below ---------------------------------

// The stream that every launch and every memset must be given.
inline cudaStream_t stream() { return reinterpret_cast<cudaStream_t>(0xD15C); }

// The running block's dynamic shared memory, filled with 0xFF (NaN, -1) when the block starts.
unsigned char* dynamic_shared();

unsigned lane();

// Ends the launch with cudaErrorLaunchFailure and this message.
[[noreturn]] void fail(Location where, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// A point between two accesses to memory that other threads see: another thread may run first.
void preempt();

enum class Vote { kCount, kAll, kAny };
int block_barrier(Vote vote, bool predicate, Location where);

// The two halves of a barrier of all threads of a cluster.
void arrive_at_cluster_barrier(Location where);
void wait_at_cluster_barrier(Location where);

enum class WarpOperation {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAll,
  kAny,
  kMatchAny
};

// The lanes of one warp that execute one warp operation together, and the value that each of them
// brings.
struct Meeting {
  unsigned mask = 0;      // the lanes that the callers name; 0: not in use
  unsigned lanes = 0;     // those that have come
  unsigned to_leave = 0;  // those that have not left yet, once it is complete
  WarpOperation operation{};
  Location where;
  std::uint64_t values[kWarpSize] = {};

  bool has(unsigned of_lane) const { return of_lane < kWarpSize && (lanes >> of_lane & 1u) != 0; }
  template <typename T>
  T value(unsigned of_lane) const {
    T result;
    std::memcpy(&result, &values[of_lane], sizeof(T));
    return result;
  }
};
Meeting& meet(unsigned mask, WarpOperation operation, std::uint64_t value, Location where);
void leave(Meeting& meeting);

// Every lane brings `value`; `read` is called with the complete meeting.
template <typename T, typename Read>
auto exchange(unsigned mask, WarpOperation operation, T value, Location where, Read read) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  Meeting& meeting = meet(mask, operation, bits, where);
  const auto result = read(meeting);
  leave(meeting);
  return result;
}

template <typename T>
T shuffle(unsigned mask, WarpOperation operation, T value, unsigned source, Location where) {
  return exchange(mask, operation, value, where, [&](const Meeting& meeting) {
    if (!meeting.has(source)) {
      fail(where, "lane %u shuffles from lane %u, which does not take part (lanes %08x do)", lane(),
           source, meeting.lanes);
    }
    return meeting.value<T>(source);
  });
}

// The lanes whose predicate is true.
inline unsigned ballot(unsigned mask, WarpOperation operation, bool predicate, Location where) {
  return exchange(mask, operation, predicate, where, [](const Meeting& meeting) {
    unsigned result = 0;
    for (unsigned i = 0; i < kWarpSize; ++i) {
      result |= meeting.has(i) && meeting.value<bool>(i) ? 1u << i : 0u;
    }
    return result;
  });
}

template <typename T>
T* aligned(T* pointer, Location where) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignof(std::remove_const_t<T>) != 0) {
    fail(where, "address %p is not aligned to %zu bytes", static_cast<const void*>(pointer),
         alignof(T));
  }
  return pointer;
}

// Tells the race detector of an access that cannot race with another of its kind.
void announce_atomic(const void* pointer, std::size_t bytes, bool is_write);

// memcpy, of which the race detector is not told.
void copy_unseen(void* to, const void* from, std::size_t bytes);

// A load that sees what other threads have stored or are about to.
template <typename T>
T load_atomic(const T* pointer, Location where) {
  announce_atomic(aligned(pointer, where), sizeof(T), false);
  T value;
  copy_unseen(&value, pointer, sizeof(T));
  return value;
}

template <typename T, typename Change>
T read_modify_write(T* pointer, Location where, Change change) {
  preempt();
  announce_atomic(aligned(pointer, where), sizeof(T), true);
  T old;
  copy_unseen(&old, pointer, sizeof(T));
  const T changed = change(old);
  copy_unseen(pointer, &changed, sizeof(T));
  return old;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   void (*invoke)(const void*), const void* arguments);

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                          Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "kernel parameters are copied byte by byte");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Call call{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
  const auto invoke = [](const void* untyped) {
    const auto* typed = static_cast<const Call*>(untyped);
    std::apply(typed->kernel, typed->arguments);
  };
  return launch(*config, reinterpret_cast<const void*>(kernel), invoke, &call);
}

}  // namespace emulator

#define cudaLaunchKernelEx ::emulator::launch_kernel

// --- the built-ins of the language ---------------------------------------------------------------

#define EMULATOR_HERE std::source_location here = std::source_location::current()

inline void __syncthreads(EMULATOR_HERE) {
  emulator::block_barrier(emulator::Vote::kCount, false, here);
}
inline int __syncthreads_count(int predicate, EMULATOR_HERE) {
  return emulator::block_barrier(emulator::Vote::kCount, predicate != 0, here);
}
inline int __syncthreads_and(int predicate, EMULATOR_HERE) {
  return emulator::block_barrier(emulator::Vote::kAll, predicate != 0, here);
}
inline int __syncthreads_or(int predicate, EMULATOR_HERE) {
  return emulator::block_barrier(emulator::Vote::kAny, predicate != 0, here);
}

inline void __cluster_barrier_arrive(EMULATOR_HERE) { emulator::arrive_at_cluster_barrier(here); }
inline void __cluster_barrier_wait(EMULATOR_HERE) { emulator::wait_at_cluster_barrier(here); }

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_HERE) {
  emulator::exchange(mask, emulator::WarpOperation::kSync, 0, here,
                     [](const emulator::Meeting&) { return 0; });
}

// The segments of `width` lanes are as on the device: a source outside its own segment gives the
// caller's own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATOR_HERE) {
  const unsigned first = emulator::lane() & ~(width - 1u);
  const unsigned from = first + (static_cast<unsigned>(source) & (width - 1u));
  return emulator::shuffle(mask, emulator::WarpOperation::kShuffle, value, from, here);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
  const unsigned in_segment = emulator::lane() & (width - 1u);
  const unsigned from = delta <= in_segment ? emulator::lane() - delta : emulator::lane();
  return emulator::shuffle(mask, emulator::WarpOperation::kShuffleUp, value, from, here);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
  const unsigned in_segment = emulator::lane() & (width - 1u);
  const unsigned from = delta < width - in_segment ? emulator::lane() + delta : emulator::lane();
  return emulator::shuffle(mask, emulator::WarpOperation::kShuffleDown, value, from, here);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, EMULATOR_HERE) {
  const unsigned end = (emulator::lane() | (width - 1u)) + 1;
  const unsigned other = emulator::lane() ^ static_cast<unsigned>(bits);
  return emulator::shuffle(mask, emulator::WarpOperation::kShuffleXor, value,
                           other < end ? other : emulator::lane(), here);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::ballot(mask, emulator::WarpOperation::kBallot, predicate != 0, here);
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::ballot(mask, emulator::WarpOperation::kAny, predicate != 0, here) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::ballot(mask, emulator::WarpOperation::kAll, predicate == 0, here) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_HERE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return emulator::exchange(
      mask, emulator::WarpOperation::kMatchAny, value, here, [](const emulator::Meeting& all) {
        unsigned result = 0;
        for (unsigned i = 0; i < emulator::kWarpSize; ++i) {
          result |= all.has(i) && all.values[i] == all.values[emulator::lane()] ? 1u << i : 0u;
        }
        return result;
      });
}

inline void __threadfence() { emulator::preempt(); }
inline void __threadfence_block() { emulator::preempt(); }
[[noreturn]] inline void __trap(EMULATOR_HERE) { emulator::fail(here, "__trap()"); }

template <typename T>
T atomicAdd(T* pointer, std::type_identity_t<T> value, EMULATOR_HERE) {
  return emulator::read_modify_write(pointer, here, [=](T old) {
    if constexpr (std::is_integral_v<T>) {
      using Unsigned = std::make_unsigned_t<T>;  // wraps around
      return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
    } else {
      return old + value;
    }
  });
}
template <typename T>
T atomicMin(T* pointer, std::type_identity_t<T> value, EMULATOR_HERE) {
  return emulator::read_modify_write(pointer, here, [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicMax(T* pointer, std::type_identity_t<T> value, EMULATOR_HERE) {
  return emulator::read_modify_write(pointer, here, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicOr(T* pointer, std::type_identity_t<T> value, EMULATOR_HERE) {
  return emulator::read_modify_write(pointer, here,
                                     [=](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicExch(T* pointer, std::type_identity_t<T> value, EMULATOR_HERE) {
  return emulator::read_modify_write(pointer, here, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* pointer, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            EMULATOR_HERE) {
  return emulator::read_modify_write(pointer, here,
                                     [=](T old) { return old == expected ? value : old; });
}

// Loads and stores with a cache hint.
template <typename T>
T __ldg(const T* pointer, EMULATOR_HERE) {
  return *emulator::aligned(pointer, here);
}
template <typename T>
T __ldcg(const T* pointer, EMULATOR_HERE) {
  return emulator::load_atomic(pointer, here);
}
template <typename T>
T __ldcs(const T* pointer, EMULATOR_HERE) {
  return *emulator::aligned(pointer, here);
}
template <typename T>
void __stwb(T* pointer, std::type_identity_t<T> value, EMULATOR_HERE) {
  *emulator::aligned(pointer, here) = value;
}
template <typename T>
void __stcs(T* pointer, std::type_identity_t<T> value, EMULATOR_HERE) {
  *emulator::aligned(pointer, here) = value;
}

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
