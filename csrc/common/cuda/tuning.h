// Sizes that kernels and their launches agree on. Those under #ifndef are what a build may choose
// (nvcc -DNAME=value), as benchmarks/run_on_gpu.sh does to compare them; no other file reads one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace discloss::cuda {

// --- blocks --------------------------------------------------------------------------------------

constexpr int kPassThreads = 256;  // of a block of a pass over the pixels
constexpr int kRowThreads = 128;   // of a block whose threads, warps or whole work on table rows
constexpr int kClusterBlocks = 8;  // the largest cluster that may be asked for anywhere
constexpr int kIdBlocksPerMultiprocessor = 6;

#ifndef DISCLOSS_BLOCKS_PER_MULTIPROCESSOR
#define DISCLOSS_BLOCKS_PER_MULTIPROCESSOR 3
#endif
constexpr int kBlocksPerMultiprocessor = DISCLOSS_BLOCKS_PER_MULTIPROCESSOR;

// The blocks of a pass over the pixels that a multiprocessor is to hold at once, which leaves a
// thread 80 registers; those of kernels that hold 32 channels in registers need more.
DISCLOSS_HOST_DEVICE constexpr int resident_blocks(int64_t channels_in_registers) {
  return channels_in_registers < 32 ? kBlocksPerMultiprocessor : 2;
}

// --- tiles ---------------------------------------------------------------------------------------

#ifndef DISCLOSS_TILE_KILOBYTES
#define DISCLOSS_TILE_KILOBYTES 36  // 16 float channels of 512 pixels
#endif
constexpr size_t kTileBytes = DISCLOSS_TILE_KILOBYTES * 1024;
constexpr int kMaxTilePixels = 512;
constexpr int kMaxTileChannels = 64;

// --- ways to do a pass ---------------------------------------------------------------------------

// Whether passes over the usual numbers of channels hold a pixel in the registers of a thread; else
// all go through tiles in shared memory.
#ifndef DISCLOSS_PIXELS_IN_REGISTERS
#define DISCLOSS_PIXELS_IN_REGISTERS 1
#endif
constexpr bool kPixelsInRegisters = DISCLOSS_PIXELS_IN_REGISTERS;

// Sums are accumulated in shared memory if a multiprocessor has it for so many blocks, else in
// global memory.
#ifndef DISCLOSS_LEAST_BLOCKS_THAT_SHARE
#define DISCLOSS_LEAST_BLOCKS_THAT_SHARE 1
#endif
constexpr int64_t kMinBlocksWithSharedSums = DISCLOSS_LEAST_BLOCKS_THAT_SHARE;

// Whether a small batch is one launch of a cluster of blocks; else it has a launch a phase too.
#ifndef DISCLOSS_SMALL_BATCHES_AT_ONCE
#define DISCLOSS_SMALL_BATCHES_AT_ONCE 1
#endif
constexpr bool kSmallBatchesInOneLaunch = DISCLOSS_SMALL_BATCHES_AT_ONCE;

// Whether the blocks of a kernel may come before the kernel ahead of it has ended (sm_90 and
// later).
#ifndef DISCLOSS_DEPENDENT_LAUNCHES
#define DISCLOSS_DEPENDENT_LAUNCHES 0
#endif
constexpr bool kDependentLaunches = DISCLOSS_DEPENDENT_LAUNCHES;

}  // namespace discloss::cuda
