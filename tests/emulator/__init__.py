"""Runs the package's CUDA kernels on the CPU.

The sources under ``csrc/*/cuda`` are compiled by the host's C++ compiler against ``emulator.h``,
which gives every CUDA thread a fiber, and run in a random legal order. ``load`` registers them as
ops on CPU tensors under a namespace of their own.

What is checked while a kernel runs: accesses of two threads to the same memory that nothing orders,
barriers and warp operations in divergent code, shuffles from lanes that do not take part,
deadlocks, reads of shared memory that nobody has written (it holds NaN), writes outside of it,
misaligned and unmapped addresses and other undefined behaviour, limits of a launch, the stream. A
kernel with such a mistake, or one that calls ``__trap()``, fails its launch; the exception has the
message and the seed of the schedule.

Not emulated: accesses outside of a tensor that hit other memory, weak memory (a missing fence),
registers, the rounding of fused multiply-adds, the speed of anything.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from support import ROOT

from .build import HERE, Source, build, emulator_sources, kernel_source

NAMESPACE = "discloss_cuda_emulated"
SHARED_MEMORY = 227 * 1024  # of one block on the largest devices


class Emulator:
    """A library that contains an emulated device: settings, errors."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.emulator_last_message.restype = ctypes.c_char_p
        self.library.emulator_launches.restype = ctypes.c_uint64

    def configure(
        self,
        *,
        seed: int = 0,
        compute_capability: int = 9,
        multiprocessors: int = 4,
        resident_blocks: int = 4,
        shared_memory_per_block: int = SHARED_MEMORY,
        find_races: bool = True,
    ) -> None:
        """Make the device another one and repair it.

        Below a ``compute_capability`` of 9 there are no clusters of blocks. The order of threads
        follows ``seed``. ``find_races`` makes kernels ten times slower; it takes two clusters of a
        launch as unordered whatever they do, so that a kernel whose last block reads what others
        have written must read it with ``__ldcg`` or atomics.
        """
        self.library.emulator_configure(
            ctypes.c_uint64(seed),
            ctypes.c_int(compute_capability),
            ctypes.c_int(multiprocessors),
            ctypes.c_int(resident_blocks),
            ctypes.c_size_t(shared_memory_per_block),
            ctypes.c_bool(find_races),
        )
        self.reset()

    def reset(self) -> None:
        """Repair the device: after a kernel has failed, all calls fail until then."""
        self.library.emulator_reset()

    @property
    def last_message(self) -> str:
        """What was wrong with the last call that failed; empty after a repair."""
        message: bytes = self.library.emulator_last_message()
        return message.decode()

    @property
    def launches(self) -> int:
        """Kernels run since the device was configured."""
        return int(self.library.emulator_launches())


@functools.cache
def samples() -> Emulator:
    """The emulator with the kernels of its own test."""
    sources = [*emulator_sources(), kernel_source(HERE / "sample_kernels.cu")]
    return Emulator(build("samples", sources))


@functools.cache
def device() -> Emulator:
    """The emulator with the package's kernels, its ops registered under ``NAMESPACE``.

    The samples are in it too, compiled alike: their mistakes show that this build is not blind.
    """
    import torch
    from torch.utils import cpp_extension

    torch_includes = [f"-isystem {path}" for path in cpp_extension.include_paths()]
    sources = [
        *emulator_sources(),
        Source(HERE / "binding.cpp", torch_includes),
        *(kernel_source(path) for path in sorted(ROOT.glob("csrc/*/cuda/*.cu"))),
        kernel_source(HERE / "sample_kernels.cu"),
    ]
    libraries = [f"-L{path} -Wl,-rpath,{path}" for path in cpp_extension.library_paths()]
    name = f"ops_torch_{torch.__version__}"
    return Emulator(build(name, sources, [*libraries, "-lc10", "-ltorch_cpu"]))


def load() -> str:
    """Register the emulated ops and give their namespace: ``getattr(torch.ops, load())``."""
    device()
    return NAMESPACE
