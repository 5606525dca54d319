// The table of one instruction set: what a kernels_*.cpp compiles.
#pragma once

#include "assign.h"
#include "bits.h"
#include "sample_kernels.h"

namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET {

extern const ClusterKernels kClusterKernels = {read_block<float>,
                                               read_block<double>,
                                               read_block<c10::Half>,
                                               read_block<c10::BFloat16>,
                                               count_bits,
                                               every_bit,
                                               assign,
                                               drop_infinite,
                                               first_within,
                                               distances,
                                               within_radii,
                                               density,
                                               nearest_denser};

}  // namespace discloss::cpu::clustering::DISCLOSS_CPU_TARGET
