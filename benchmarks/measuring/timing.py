"""Timers: the same three phases on CPU and CUDA, in rounds, with quantiles.

On the CPU it is `torch.utils.benchmark.Timer`. On CUDA it is a pair of events around one call that
was queued while the device was kept busy, the L2 cache flushed before it: the time of the device,
not of Python. All subjects take turns in every round, so that a clock that drifts or
a neighbour that wakes up hits them alike.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

PHASES = ("forward", "backward", "both")

Key = tuple[str, str]  # name and phase

FLUSH_AT_LEAST = 256 << 20  # bytes

# The device is kept busy for so many times the host's time of the call, at first, and twice as long
# each time the device was free before all was queued, up to so many times.
HEAD_START, ATTEMPTS = 2.0, 4
SLEEP_AT_LEAST = 5e-4  # seconds


@dataclass(frozen=True)
class Subject:
    """A loss and its input, a leaf that requires a gradient."""

    loss: Callable[[Tensor], Tensor]
    embeddings: Tensor


def both(subject: Subject) -> Tensor:
    """One forward and backward; the gradient is a new tensor every time."""
    subject.embeddings.grad = None
    loss = subject.loss(subject.embeddings)
    loss.backward()
    return loss


@dataclass(frozen=True)
class Work:
    """What is timed: `run`, on what `prepare` made outside of the timer.

    On CUDA a whole turn is within `around`.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] | None = None
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


def phases(subject: Subject) -> dict[str, Work]:
    """Forward, backward, and both in one."""

    def forward_of_backward() -> Tensor:
        subject.embeddings.grad = None
        return subject.loss(subject.embeddings)

    return {
        "forward": Work(lambda _: subject.loss(subject.embeddings)),
        "backward": Work(lambda loss: loss.backward(), forward_of_backward),
        "both": Work(lambda _: both(subject)),
    }


@dataclass
class Series:
    """Seconds of all repeats."""

    times: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)  # CUDA: until the call returned
    queued: bool | None = None  # CUDA: all launches were queued before the device began

    def summary(self) -> dict[str, float]:
        """Median and 20/80 % quantiles in milliseconds, and the host's median on CUDA."""
        low, median, high = np.quantile(self.times, (0.2, 0.5, 0.8)) * 1e3
        result = {"median_ms": float(median), "q20_ms": float(low), "q80_ms": float(high)}
        result["samples"] = len(self.times)
        if self.host:
            result["host_ms"] = float(np.median(self.host) * 1e3)
        if self.queued is not None:
            result["queued"] = self.queued
        return result

    def add(self, part: Series) -> None:
        """More repeats. Those that were queued are not mixed with those that cannot be."""
        if self.queued and not part.queued:
            self.times, self.host = [], []
        self.times += part.times
        self.host += part.host
        self.queued = part.queued


class Sampler(Protocol):
    """Repeats one piece of work for about so many seconds."""

    def sample(self, seconds: float) -> Series: ...


class _Stopwatch:
    """A clock that stands still unless started: its time is that of the parts in between."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._since = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._elapsed += time.perf_counter() - self._since

    def __call__(self) -> float:
        return self._elapsed


class CpuSampler:
    """`torch.utils.benchmark.Timer`, with preparations kept off the clock."""

    def __init__(self, work: Work, threads: int) -> None:
        clock: Callable[[], float] = time.perf_counter
        variables: dict[str, object] = {"run": work.run}
        statement = "run(None)"
        if work.prepare is not None:
            clock = watch = _Stopwatch()
            variables |= {"prepare": work.prepare, "watch": watch}
            statement = "prepared = prepare(); watch.start(); run(prepared); watch.stop()"
        self._timer = Timer(statement, globals=variables, timer=clock, num_threads=threads)

    def sample(self, seconds: float) -> Series:
        return Series(list(self._timer.blocked_autorange(min_run_time=seconds).times))


class CudaSampler:
    """Events around single calls, queued behind a busy kernel, and the host's time beside them.

    In the stream: a kernel that only waits, one that flushes the L2 cache, the first event, the
    call, the second event. If the first event has not been reached when everything is queued, the
    device ran the call without waiting for the host. A call that itself waits for the device can
    never be queued so: it is timed as it is, launches included, and its series says so.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._sleep: float | None = None  # seconds; None before the first call
        self._waits = False  # the call itself waits for the device

    def sample(self, seconds: float) -> Series:
        series = Series()
        with self._work.around():
            self._first()
            end = time.perf_counter() + seconds
            while not series.times or time.perf_counter() < end:
                device, host = self._once()
                series.add(Series([device], [host], queued=not self._waits))
        return series

    def _first(self) -> None:
        """The first call after another subject: allocator, clocks, and how long the host needs."""
        _, host, _ = self._attempt(0.0)
        if self._sleep is None:
            self._sleep = max(HEAD_START * host, SLEEP_AT_LEAST)

    def _once(self) -> tuple[float, float]:
        """Seconds of the device and of the host."""
        assert self._sleep is not None
        if not self._waits:
            sleep = self._sleep
            for _ in range(ATTEMPTS):
                device, host, ahead = self._attempt(sleep)
                if ahead:
                    self._sleep = sleep
                    return device, host
                sleep *= 2
            self._waits = True
        device, host, _ = self._attempt(0.0)
        return device, host

    def _attempt(self, sleep: float) -> tuple[float, float, bool]:
        """One call behind `sleep` seconds; the last result: the host was ahead to the end."""
        prepared = self._work.prepare() if self._work.prepare else None
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if sleep:
            torch.cuda._sleep(int(sleep * _cycles_per_second()))
        _flush_buffer().zero_()
        start.record()
        began = time.perf_counter()
        self._work.run(prepared)
        host = time.perf_counter() - began
        stop.record()
        ahead = not start.query()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3, host, ahead


@functools.cache
def _cycles_per_second() -> float:
    """The clock by which `torch.cuda._sleep` counts."""
    cycles = 10_000_000
    for _ in range(2):  # once to wake up
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        torch.cuda._sleep(cycles)
        stop.record()
        torch.cuda.synchronize()
    return cycles / (start.elapsed_time(stop) / 1e3)


def replay(subject: Subject) -> Work:
    """Forward and backward captured in a CUDA graph, to be replayed.

    Only for what does not wait for the device: a capture that fails leaves the allocator unusable.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        leaf = subject.embeddings.detach().requires_grad_()  # its gradient belongs to this stream
        for _ in range(3):
            torch.autograd.grad(subject.loss(leaf), leaf)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        loss = subject.loss(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
    del loss, gradient
    return Work(lambda _: graph.replay())


@functools.cache
def _flush_buffer() -> Tensor:
    """More than the L2 cache holds."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(max(FLUSH_AT_LEAST, 2 * cache), dtype=torch.int8, device="cuda")


def sampler(work: Work, device: str, threads: int) -> Sampler:
    """The timer of the device."""
    return CudaSampler(work) if device == "cuda" else CpuSampler(work, threads)


def in_rounds(
    samplers: Mapping[Key, Sampler],
    rounds: int,
    seconds: float,
    limit: float = math.inf,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[Key, Series]:
    """All repeats of all subjects; each takes its turn of `seconds` in every round.

    Every round begins with another subject. No round begins `limit` seconds after the first one
    did, except for the second.
    """
    result = {key: Series() for key in samplers}
    began = time.monotonic()
    for number in range(rounds):
        if number >= 2 and time.monotonic() - began > limit:
            break
        keys = list(samplers)
        first = number % max(len(keys), 1)
        for key in keys[first:] + keys[:first]:
            progress(f"round {number + 1}/{rounds}: {' '.join(key)}")
            part = samplers[key].sample(seconds)
            result[key].add(part)
    return result
