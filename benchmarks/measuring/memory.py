"""The most memory one forward and backward need beside their inputs, the gradient included.

On CUDA the allocator knows. On the CPU the kernel does: resident memory is read before the call and
its high-water mark after it, in a process of its own that hands every freed block back at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import torch

from .timing import Subject, both

Result = TypeVar("Result")

HOW = {
    "cuda": "max_memory_allocated - memory_allocated",
    "cpu": "VmHWM (after clear_refs) - VmRSS, in a process of its own",
}

M_MMAP_THRESHOLD = -3  # of mallopt
MMAP_FROM = 1 << 16  # bytes: larger blocks are mapped one by one, not carved from a kept heap

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")


def available(device: str) -> int:
    """Bytes that can be allocated now."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    free = sys.maxsize
    with contextlib.suppress(OSError, IndexError):
        free = 1024 * _number_after("MemAvailable:", Path("/proc/meminfo"))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; "max" is none
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


def cuda_peak(subject: Subject) -> int:
    """Bytes at the peak of one forward and backward."""
    subject.embeddings.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both(subject)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(make: Callable[[], Subject], threads: int) -> int | None:
    """The same on the CPU, by a new process that calls `make`; None where it cannot be measured."""
    if not CLEAR_REFS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_peak_here, make, threads).result()
        except (BrokenProcessPool, OSError, RuntimeError, AttributeError):
            return None  # killed for its memory, or not a Linux with glibc


def _peak_here(make: Callable[[], Subject], threads: int) -> int | None:
    hand_back_freed_blocks()
    torch.set_num_threads(threads)
    subject = make()
    both(subject)  # compiles, starts threads
    subject.embeddings.grad = None
    return peak_of(lambda: both(subject))[1]


def hand_back_freed_blocks() -> None:
    """From now on what this process frees is no longer resident, unless it is small."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_FROM)


def peak_of(call: Callable[[], Result]) -> tuple[Result, int | None]:
    """What a call returns, and by how many bytes resident memory rose while it ran.

    None where that cannot be measured.
    """
    if not CLEAR_REFS.exists():
        return call(), None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5")
    before = _number_after("VmRSS:", STATUS)
    result = call()
    return result, 1024 * max(0, _number_after("VmHWM:", STATUS) - before)


def _number_after(word: str, file: Path) -> int:
    return int(file.read_text().partition(word)[2].split()[0])
