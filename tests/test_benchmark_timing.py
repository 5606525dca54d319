"""The clock of the benchmark, on the CPU and on a device that works behind the host."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import pytest
import torch
from measuring import baselines, measure, memory, nothing, report, timing, workloads
from support.benchmarks import PROBLEMS

from discloss_cuda import _ops


class FakeDevice:
    """Stands in for `torch.cuda`: a clock of the host, and one up to which the device is busy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.busy_until = 0.0
        self.log: list[str] = []
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                fake.log.append("event")
                self.reached = max(fake.now, fake.busy_until)

            def query(self) -> bool:
                return self.reached <= fake.now

            def elapsed_time(self, end: Event) -> float:
                return (end.reached - self.reached) * 1e3

        class Buffer:
            def zero_(self) -> None:
                fake.log.append("flush")
                fake.launch(1e-4)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep)
        monkeypatch.setattr(timing, "_flush_buffer", Buffer)
        monkeypatch.setattr(timing, "_cycles_per_second", lambda: 1e9)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def launch(self, seconds: float) -> None:
        self.busy_until = max(self.now, self.busy_until) + seconds

    def sleep(self, cycles: int) -> None:
        self.log.append("sleep")
        self.launch(cycles / 1e9)

    def wait(self) -> None:
        self.log.append("wait")
        self.now = max(self.now, self.busy_until)

    def call(self, launches: int, host: float, device: float, *, waits: bool = False) -> None:
        """So many launches, each of which takes the host and the device so long."""
        self.log.append("run")
        for _ in range(launches):
            self.now += host
            self.launch(device)
        if waits:
            self.now = max(self.now, self.busy_until)


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    return FakeDevice(monkeypatch)


def test_only_the_phase_is_on_the_clock() -> None:
    work = timing.Work(lambda prepared: prepared, prepare=lambda: time.sleep(0.01))
    series = timing.CpuSampler(work, threads=1).sample(1e-6)
    assert 0 < max(series.times) < 0.005


def test_cuda_times_are_the_device_s(fake_device: FakeDevice) -> None:
    """Ten launches that take the host longer than the device count as what the device does."""
    work = timing.Work(lambda _: fake_device.call(10, host=1e-3, device=1e-5))
    series = timing.sampler(work, "cuda", threads=1).sample(0.0)
    assert series.summary()["queued"]
    assert math.isclose(series.summary()["median_ms"], 0.1)
    assert math.isclose(series.summary()["host_ms"], 10.0)
    first = ["wait", "flush", "event", "run", "event", "wait"]
    assert fake_device.log == [*first, "wait", "sleep", *first[1:]]


def test_cuda_sleep_grows_until_the_host_is_ahead(fake_device: FakeDevice) -> None:
    """The host became slower after it was first looked at."""
    hosts = iter([1e-4, *[9e-4] * 9])
    work = timing.Work(lambda _: fake_device.call(1, host=next(hosts), device=1e-5))
    sampler = timing.sampler(work, "cuda", threads=1)
    series = sampler.sample(0.0)
    assert fake_device.log.count("sleep") == 2
    assert math.isclose(series.times[0], 1e-5)
    assert series.queued
    sampler.sample(0.0)
    assert fake_device.log.count("sleep") == 3, "what was enough is remembered"


def test_a_call_that_waits_is_not_called_queued(fake_device: FakeDevice) -> None:
    prepared: list[int] = []

    def prepare() -> int:
        prepared.append(len(prepared))
        return prepared[-1]

    def run(number: int) -> None:
        assert number == prepared[-1], "what was prepared is used once"
        prepared[-1] = -1
        fake_device.call(2, host=1e-3, device=1e-5, waits=True)

    sampler = timing.sampler(timing.Work(run, prepare), "cuda", threads=1)
    series = sampler.sample(0.0)
    assert series.queued is False
    assert series.times[0] > 1e-3, "launches included"
    assert fake_device.log.count("sleep") == timing.ATTEMPTS
    sampler.sample(0.0)
    assert fake_device.log.count("sleep") == timing.ATTEMPTS, "found out once"
    joined = timing.Series(queued=True)
    joined.add(series)
    assert joined.queued is False


def test_a_turn_is_within_its_context(fake_device: FakeDevice) -> None:
    inside: list[bool] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    seen: list[bool] = []
    work = timing.Work(lambda _: seen.append(bool(inside)), around=around)
    timing.sampler(work, "cuda", threads=1).sample(0.0)
    assert seen
    assert all(seen)
    assert not inside


def test_enough_is_enough() -> None:
    """Two rounds always; then none that begins after the limit."""
    samplers = {("a", "both"): timing.CpuSampler(timing.Work(lambda _: time.sleep(0.01)), 1)}
    assert len(timing.in_rounds(samplers, 100, 1e-6, limit=0.0)["a", "both"].times) == 2
    assert len(timing.in_rounds(samplers, 3, 1e-6)["a", "both"].times) == 3


def test_gradient_is_new_every_time() -> None:
    x = torch.ones(4, requires_grad=True)
    subject = timing.Subject(lambda x: x.sum(), x)
    for _ in range(2):
        timing.both(subject)
        assert x.grad is not None
        assert x.grad.tolist() == [1.0] * 4
    assert set(timing.phases(subject)) == set(timing.PHASES)


def test_a_call_that_does_nothing() -> None:
    """It goes through the package's own function and gradient, and launches nothing."""
    problem = workloads.build(PROBLEMS["clouds"], torch.float32, "cpu")
    known = baselines.implementations(quick=True)[0].make(problem)
    subject = timing.Subject(known, problem.embeddings)
    with _ops.use(nothing.ops()), torch.profiler.profile(acc_events=True) as profile:
        timing.both(subject)
    assert problem.embeddings.grad is not None
    assert problem.embeddings.grad.shape == problem.embeddings.shape
    called = {event.key for event in profile.key_averages()}
    assert {"discloss_nothing::forward", "discloss_nothing::backward"} <= called
    assert not any(name.startswith("discloss_cuda::") for name in called)


def test_a_cuda_measurement_beginning_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU under stand-ins: what waits is not captured, a failed capture is reported."""

    class Sampler(timing.CpuSampler):
        def sample(self, seconds: float) -> timing.Series:
            times = super().sample(seconds).times
            return timing.Series(times, host=times, queued="no K" not in current[-1])

    def sampler(work: timing.Work, device: str, threads: int) -> timing.Sampler:
        assert device == "cuda"
        return Sampler(work, threads)

    current: list[str] = [""]
    captured: list[str] = []

    def replay(subject: timing.Subject) -> timing.Work:
        captured.append(current[-1])
        if current[-1].endswith("reference"):
            raise RuntimeError("no graph\nof this")
        return timing.Work(lambda _: timing.both(subject))

    build = workloads.build
    monkeypatch.setattr(measure, "build", lambda w, dtype, device: build(w, dtype, "cpu"))
    monkeypatch.setattr(measure, "sampler", sampler)
    monkeypatch.setattr(measure, "replay", replay)
    monkeypatch.setattr(memory, "available", lambda device: 1 << 40)
    monkeypatch.setattr(memory, "cuda_peak", lambda subject: 1000)
    settings = measure.Settings("cuda", 1, 2, 1e-4, 60.0, compiled=False)
    record = measure.measure(PROBLEMS["tiny"], "float32", settings, current.append)
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["discloss_cuda (no K)"]["graph_error"] == "waits for the device"
    assert rows["reference"]["graph_error"] == "RuntimeError: no graph"
    ours = rows["discloss_cuda"]
    assert not any("no K" in name for name in captured)
    assert ours["graph"]["copies"] > 0
    ratio = ours["both"]["host_ms"] / record["nothing"]["host_ms"]
    assert math.isclose(ours["both"]["host_ratio"], ratio)
    assert record["speedups"].keys() >= {"reference", "eager"}
    assert "discloss_cuda" in report.table(record)
    assert "tiny float32" in report.summary([record])
