// The table of one instruction set: what a kernels_*.cpp compiles.
#pragma once

#include "passes.h"
#include "push.h"

namespace discloss::cpu::DISCLOSS_CPU_TARGET {

template <typename scalar_t, int kNorm, int W>
inline constexpr Kernels<scalar_t> kTable = {add_sums<scalar_t, W>, add_pull<scalar_t, kNorm, W>,
                                             add_push<accumulate_t<scalar_t>, kNorm>,
                                             write_gradient<scalar_t, kNorm, W>};

template <typename scalar_t, int kNorm>
const Kernels<scalar_t>& table_for(int64_t channels) {
  using T = accumulate_t<scalar_t>;
  return channels <= kFewLanes<T> ? kTable<scalar_t, kNorm, kFewLanes<T>>
                                  : kTable<scalar_t, kNorm, kLanes<T>>;
}

template <typename scalar_t>
const Kernels<scalar_t>& kernels(int64_t norm, int64_t channels) {
  return norm == 1 ? table_for<scalar_t, 1>(channels) : table_for<scalar_t, 2>(channels);
}

template const Kernels<float>& kernels<float>(int64_t norm, int64_t channels);
template const Kernels<double>& kernels<double>(int64_t norm, int64_t channels);
template const Kernels<c10::Half>& kernels<c10::Half>(int64_t norm, int64_t channels);
template const Kernels<c10::BFloat16>& kernels<c10::BFloat16>(int64_t norm, int64_t channels);

}  // namespace discloss::cpu::DISCLOSS_CPU_TARGET
