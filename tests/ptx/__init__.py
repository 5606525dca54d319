"""Runs what nvcc makes of the package's CUDA kernels, without a GPU.

nvcc compiles the sources under ``csrc/*/cuda`` to PTX and to the host's launchers. The launchers
run as they are: their calls of the CUDA runtime come to a stand-in, which executes the PTX warp by
warp, in a random legal order. The ops are registered on CPU tensors under a namespace of their own,
as the emulator's are.

What is checked while a kernel runs: accesses outside of the tensors that a call was given and of
memory that torch has allocated, accesses outside of a block's shared memory, misaligned ones,
accesses of two warps to the same shared memory that no barrier orders, barriers that a part of a
warp reaches, shuffles from lanes that do not take part, warp operations whose mask does not name
the caller, deadlock, reads of registers, shared memory and torch's memory that nobody has written
(they hold NaN). A kernel with such a mistake, with an instruction that the interpreter does not
know, or one that calls ``__trap()``, fails its launch; the exception names the line of the PTX and
the seed.

Not covered: races of the lanes of a warp, and in global memory, that no schedule shows (those are
the emulator's to find), weak memory, what ptxas makes of the PTX, time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulator import Emulator

from .build import ARCHITECTURES, Compiled, build_package, build_samples

NAMESPACE = "discloss_cuda_compiled"


@dataclass(frozen=True)
class Instruction:
    """An instruction of a kernel, and what all launches have made of it.

    ``warps`` are executions by a warp or a part of one. A sector is 32 bytes of global memory, a
    wavefront is what shared memory serves at once; both are counted on request.
    """

    kernel: str
    line: int
    name: str
    warps: int
    lanes: int
    sectors: int
    least_sectors: int
    wavefronts: int
    least_wavefronts: int


@dataclass(frozen=True)
class Launched:
    """All launches of a kernel; ``threads`` and ``shared_bytes`` of a block, the most of any."""

    kernel: str
    launches: int
    blocks: int
    threads: int
    shared_bytes: int


class Interpreter(Emulator):
    """A library that contains a device that runs PTX: the emulator's settings and errors, and what
    has been executed.

    A device of compute capability 7, 8 or 9 runs the code for sm_75, sm_80 or sm_90.
    """

    def __init__(self, library: Path, compiled: Sequence[Compiled]) -> None:
        super().__init__(library)
        self.compiled = compiled
        for capability, architecture in ARCHITECTURES.items():
            self.choose(capability, [each.ptx[architecture] for each in compiled])

    def choose(self, capability: int, files: Sequence[Path]) -> None:
        """Let devices of a compute capability run these files; counts begin anew."""
        self.library.ptx_choose(ctypes.c_int(capability))
        for path in files:
            self.library.ptx_add_file(ctypes.c_int(capability), str(path).encode())

    @contextlib.contextmanager
    def chosen(self, capability: int, files: Sequence[Path]) -> Iterator[None]:
        """``choose`` for a while."""
        self.choose(capability, files)
        try:
            yield
        finally:
            self.choose(capability, [each.ptx[ARCHITECTURES[capability]] for each in self.compiled])

    @contextlib.contextmanager
    def recorded_memory(self) -> Iterator[None]:
        """While it lasts, kernels may touch what torch allocates on the CPU, and nothing beside
        it but the tensors that a call is given."""
        self.library.ptx_record_memory(ctypes.c_bool(True))
        try:
            yield
        finally:
            self.library.ptx_record_memory(ctypes.c_bool(False))

    @contextlib.contextmanager
    def given(self, arrays: Sequence[tuple[int, int]]) -> Iterator[None]:
        """While it lasts, kernels may touch these addresses and as many bytes behind each."""
        for address, size in arrays:
            self.library.ptx_give(ctypes.c_void_p(address), ctypes.c_size_t(size))
        try:
            yield
        finally:
            self.library.ptx_take_back_given()

    @contextlib.contextmanager
    def counted_accesses(self) -> Iterator[None]:
        """While it lasts, sectors and wavefronts are counted, from 0 as all counts, and the order
        of threads is the plain one, whatever the seed."""
        self.clear_counts()
        self.library.ptx_count_accesses(ctypes.c_bool(True))
        try:
            yield
        finally:
            self.library.ptx_count_accesses(ctypes.c_bool(False))

    @contextlib.contextmanager
    def limited_turns(self, most: int) -> Iterator[None]:
        """While it lasts, a launch whose warps have more turns than this fails: a mistake may be a
        loop without end."""
        self.library.ptx_limit_turns(ctypes.c_uint64(most))
        try:
            yield
        finally:
            self.library.ptx_limit_turns(ctypes.c_uint64(2**64 - 1))

    def clear_counts(self) -> None:
        """Let all counts begin anew."""
        self.library.ptx_clear_counts()

    def executed(self, capability: int) -> list[Instruction]:
        """Every instruction of every kernel that devices of a compute capability run."""
        rows = self._rows(self.library.ptx_write_counts, capability)
        return [
            Instruction(kernel, int(line), name, *map(int, counts))
            for kernel, line, name, *counts in rows
        ]

    def launched(self, capability: int) -> list[Launched]:
        """Every kernel that such devices have launched."""
        rows = self._rows(self.library.ptx_write_launches, capability)
        return [Launched(kernel, *map(int, numbers)) for kernel, *numbers in rows]

    @staticmethod
    def _rows(write: Callable[..., None], capability: int) -> list[list[str]]:
        with tempfile.NamedTemporaryFile("r") as file:
            write(ctypes.c_int(capability), file.name.encode())
            return [line.split("\t") for line in file.read().splitlines()]


@functools.cache
def samples() -> Interpreter:
    """The interpreter with the kernels of its own test."""
    return Interpreter(*build_samples())


@functools.cache
def device() -> Interpreter:
    """The interpreter with the package's kernels, its ops registered under ``NAMESPACE``."""
    return Interpreter(*build_package())


@functools.cache
def ops() -> Any:
    """The compiled ops with their gradients (discloss_cuda._ops.Ops)."""
    from discloss_cuda import _ops

    device()
    return _ops.bind(NAMESPACE)
