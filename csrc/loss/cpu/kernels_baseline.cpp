// The kernels for any processor: 16-byte vectors, which x86-64 (SSE2) and aarch64 (NEON) always
// have.
#define DISCLOSS_CPU_TARGET baseline
#define DISCLOSS_CPU_VECTOR_BYTES 16

#include "kernel_table.h"
