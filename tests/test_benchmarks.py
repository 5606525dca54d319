"""The benchmark tells right from wrong, and writes down what it measured."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_loss
import compare
from measuring import aims, baselines, exact, measure, memory, nothing, report, timing, workloads
from measuring.baselines import Implementation
from measuring.workloads import LabelMap, Problem, Workload

from discloss_cuda import _ops, reference

RAGGED = torch.tensor([[7, 7, 3, 3, 3, 0, 0, 9, 9, 9], [5, 5, 5, 5, 5, 5, 5, 5, 0, 0]])


def _clouds() -> LabelMap:
    return LabelMap(torch.arange(60).reshape(-1) % 7, offsets=torch.tensor([0, 25, 25, 31, 60]))


PROBLEMS = {
    "tiny": workloads.WORKLOADS[0],
    "ragged": Workload("ragged", 3, "", lambda: LabelMap(RAGGED, ignore_label=0)),
    "clouds": Workload("clouds", 5, "", _clouds),
}


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return workloads.build(PROBLEMS[request.param], torch.float64, "cpu")


def _short_run(tmp_path: Path, *options: str) -> int:
    """The command line on the smallest workload."""
    fixed = ["--device", "cpu", "--threads", "1", "--workload", "tiny", "--dtype", "float32"]
    files = ["--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")]
    return bench_loss.main(
        [*fixed, *files, "--rounds", "1", "--seconds", "0.001", "--no-compile", *options]
    )


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory takes a process an implementation: one test does that, not all."""
    monkeypatch.setattr(memory, "cpu_peak", lambda make, threads: 1_500_000)


def _with(monkeypatch: pytest.MonkeyPatch, *more: Implementation) -> None:
    """Adds implementations to those that the benchmark compares."""
    known = baselines.implementations(quick=True)
    monkeypatch.setattr(measure, "implementations", lambda *, quick: [*known, *more])


def test_exact_is_the_reference(problem: Problem) -> None:
    x, labels, ignored = problem.embeddings, problem.labels, problem.ignore_label
    loss: Any
    if problem.offsets is None:
        loss = reference.discriminative_loss(x, labels, ignore_label=ignored)
    else:
        loss = reference.discriminative_loss_packed(
            x, labels, problem.offsets, ignore_label=ignored
        )
    (grad,) = torch.autograd.grad(loss, x)
    errors = exact.compare(problem, exact.compute(problem), loss, grad)
    assert errors.loss < 1e-14
    assert errors.grad < 1e-12


def test_every_implementation_is_exact_in_float64(problem: Problem) -> None:
    torch.compiler.reset()
    expected = exact.compute(problem)
    everything = baselines.implementations(quick=False, backend="eager")
    assert len({implementation.name for implementation in everything}) == len(everything) == 10
    for implementation in everything:
        subject = timing.Subject(implementation.make(problem), problem.embeddings)
        loss = timing.both(subject)
        assert problem.embeddings.grad is not None
        errors = exact.compare(problem, expected, loss.detach(), problem.embeddings.grad)
        assert errors.loss < 1e-12, implementation.name
        assert errors.grad < 1e-11, implementation.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_baseline_is_right() -> None:
    torch.compiler.reset()
    problem = workloads.build(PROBLEMS["ragged"], torch.float32, "cpu")
    expected = exact.compute(problem)
    compiled = baselines.implementations(quick=True)[-1]
    assert compiled.group == "torch.compile"
    contender = measure.Contender(compiled, problem)
    contender.check(expected, "cpu")
    assert contender.row["status"] == "ok", contender.row


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _short_run(tmp_path) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= report.TABLE_WIDTH
    lines = text.splitlines()
    rows = [line.partition("|")[0].rstrip() for line in lines if "20-80" not in line]
    for name in ("discloss_cuda", "discloss_cuda (no K)", "reference"):
        assert rows.count(name) == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["machine"].keys() >= {"date", "commit", "torch", "cpu", "threads"}
    (record,) = found["results"]
    eager = [row for row in record["rows"] if row["group"] == "eager"]
    limit = measure.NEAR * min(row["first_look_ms"] for row in eager)
    timed = {row["name"] for row in eager if "both" in row}
    assert timed == {row["name"] for row in eager if row["first_look_ms"] <= limit}
    assert timed == {row for row in rows if row.startswith("eager ")}, "others are not shown"

    assert (record["shape"], record["instances"]) == ([2, 4, 24, 20], 5)
    ours = record["rows"][0]
    assert (ours["name"], ours["status"]) == ("discloss_cuda", "ok")
    for phase in timing.PHASES:
        assert 0 < ours[phase]["q20_ms"] <= ours[phase]["median_ms"] <= ours[phase]["q80_ms"]
    expected = ours["both"]["median_ms"] / record["copy_"]["median_ms"]
    assert math.isclose(ours["both"]["copies"], expected)
    if memory.CLEAR_REFS.exists():
        assert 0 < ours["peak_bytes"] < 50e6

    with (tmp_path / "out.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [row["name"] for row in record["rows"]]
    assert math.isclose(float(table[0]["both_median_ms"]), ours["both"]["median_ms"])


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("what", ["loss", "gradient", "nan"])
def test_wrong_is_reported(
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def make(problem: Problem) -> baselines.Loss:
        right = baselines.implementations(quick=True)[1].make(problem)

        def wrong(x: Tensor) -> Tensor:
            if what == "nan":
                return right(x) * x.new_tensor(math.nan)
            return right(x) * 1.001 if what == "loss" else right(x.detach()) + 0 * x.sum()

        return wrong

    _with(monkeypatch, Implementation("bad", "bad", make))
    assert _short_run(tmp_path) == 1
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("bad "))
    assert "WRONG" in line
    assert "wrong or failed: 1" in err
    row = json.loads((tmp_path / "out.json").read_text())["results"][0]["rows"][-1]
    assert row["status"] == "WRONG"
    assert "both" not in row, "a wrong implementation is not timed"


@pytest.mark.usefixtures("no_memory")
def test_failure_and_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(x: Tensor) -> Tensor:
        return x.new_empty(1 << 45).sum()

    def broken(x: Tensor) -> Tensor:
        raise ZeroDivisionError("of the baseline")

    huge = Implementation("huge", "huge", lambda problem: greedy, lambda problem: 1 << 60)
    surprise = Implementation("surprise", "surprise", lambda problem: greedy)
    _with(monkeypatch, huge, surprise)
    assert _short_run(tmp_path) == 0, "a baseline that does not fit is no error"
    out = capsys.readouterr().out
    assert "huge                  | out of memory: would need about 1152921505 GB" in out
    assert "surprise              | out of memory\n" in out

    _with(monkeypatch, Implementation("broken", "broken", lambda problem: broken))
    assert _short_run(tmp_path) == 1
    assert "| FAILED: ZeroDivisionError: of the baseline" in capsys.readouterr().out


@pytest.mark.usefixtures("no_memory")
def test_all_formulations_on_request(tmp_path: Path) -> None:
    assert _short_run(tmp_path, "--all", "--quick") == 0
    rows = json.loads((tmp_path / "out.json").read_text())["results"][0]["rows"]
    assert sum("both" in row for row in rows if row["group"] == "eager") == 4


def test_workload_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_loss.main(["--device", "cpu", "--quick", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["nuclei", "nuclei-batch", "embryo-clip"]
    assert bench_loss.main(["--device", "cpu", "--workload", "vol*", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["volume", "volume-k10000"]
    with pytest.raises(SystemExit, match=r"expected one of .* got nothing"):
        bench_loss.main(["--device", "cpu", "--workload", "nothing"])


def test_inputs() -> None:
    """Slots are the ranks of the ids in their image; ignored pixels have the last bin."""
    problem = workloads.build(PROBLEMS["ragged"], torch.float32, "cpu")
    assert (problem.images, problem.instances, problem.bins) == (2, 3, 4)
    assert problem.slots.tolist()[0] == [1, 1, 0, 0, 0, 3, 3, 2, 2, 2]
    assert problem.flat.tolist()[10:] == [4] * 8 + [7] * 2
    blocks = workloads.coherent(2, (32, 32), 36, blocks=2).ids
    assert [len(image.unique()) for image in blocks] == [36, 36]
    nuclei = next(w for w in workloads.WORKLOADS if w.name == "nuclei")
    assert workloads.build(nuclei, torch.bfloat16, "cpu").instances == 125


def test_only_the_phase_is_on_the_clock() -> None:
    work = timing.Work(lambda prepared: prepared, prepare=lambda: time.sleep(0.01))
    series = timing.CpuSampler(work, threads=1).sample(1e-6)
    assert 0 < max(series.times) < 0.005


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


def _cuda_record(**more: Any) -> dict[str, Any]:
    phase = {"median_ms": 1.0, "q20_ms": 0.5, "q80_ms": 2.0, "copies": 3.0, "host_ms": 0.25}
    row: dict[str, Any] = {name: dict(phase) for name in (*timing.PHASES, "graph")}
    row |= {"name": "ours", "group": "discloss_cuda", "status": "ok", "shown": True}
    row |= {"peak_bytes": 30_000, "loss_error": 1e-7, "grad_error": 2e-7}
    row["both"]["host_ratio"] = 1.25
    problem = workloads.build(PROBLEMS["tiny"], torch.float32, "cpu")
    record = measure.describe(PROBLEMS["tiny"], problem, "float32", "cuda")
    record |= {"copy_": {"median_ms": 0.5, "gb_per_s": 4000.0}, "nothing": {"host_ms": 0.2}}
    return record | {"rows": [row | more], "speedups": {"reference": 12.0}}


def test_cuda_table() -> None:
    """On CUDA replay, host time and the bound of the memory stand beside the rest."""
    record = _cuda_record()
    _, units, groups, titles, line, end = report.table(record).split("\n")
    assert "does nothing 0.200 ms" in units
    assert "x clone" not in groups
    assert len(titles) == len(line) <= report.TABLE_WIDTH
    assert line[titles.index("     ms x no-op|") :].startswith("  0.250   1.250|")
    bound = 4 * (2 * 4 * 24 * 20) + 4 * (2 * 24 * 20) + 16 * 2 * 5 * (4 + 4)
    assert record["bound_bytes"] == bound
    peak = line.split("|")[4].split()
    assert peak == ["0.030", f"{30_000 / bound:.3f}"]
    assert end == ""


def test_what_was_not_measured_is_a_dash() -> None:
    record = _cuda_record(graph={}, peak_bytes=None)
    line = report.table(record).splitlines()[-1]
    assert line.split("|")[1].split()[1] == "-"
    record["rows"][0]["both"]["queued"] = False
    assert report.table(record).splitlines()[-1].startswith("ours *")


def test_cuda_summary() -> None:
    heads, line, *_ = report.summary([_cuda_record()]).splitlines()
    titles = "copies graph x reference x eager x compile host x no-op peak x bound"
    assert heads.split() == titles.split()
    assert line.split()[2:] == ["3.000", "3.000", "12.00", "-", "-", "1.250", "1.465"]
    failed = _cuda_record()
    failed["rows"] = [{"name": "ours", "status": "WRONG"}]
    assert "WRONG" in report.summary([failed])


def test_speedups_are_over_the_best_of_each_group() -> None:
    times = [("discloss_cuda", 2.0), ("eager", 20.0), ("eager", 30.0), ("torch.compile", 8.0)]
    rows = [{"group": group, "both": {"median_ms": time}} for group, time in times]
    assert measure.speedups(rows) == {"eager": 10.0, "torch.compile": 4.0}
    assert measure.speedups(rows[1:]) == {}


@pytest.mark.usefixtures("no_memory")
def _record(workload: str, device: str = "cpu", **both: float) -> report.Record:
    return {
        "workload": workload,
        "device": device,
        "dtype": "float32",
        "speedups": {"eager": 16.0, "torch.compile": 4.0},
        "rows": [{"status": "ok", "both": both}],
    }


def test_aims_are_met_or_missed() -> None:
    met, missed, ready, cuda = (
        _record("volume", clones=1.5, copies=9.0),
        _record("nuclei", clones=3.0, copies=9.0),
        _record("2d-k16", clones=2.0, copies=5.0),
        _record("2d-batch", "cuda", copies=1.75),
    )
    lines = aims.verdicts([met, missed, ready, cuda]).splitlines()[1:]
    assert "1.50 copies (at most 1.5): met; 16.00 x eager" in lines[0]
    assert lines[0].endswith("4.00 x compile (at least 3): met")
    assert "3.00 copies (at most 2): MISSED by 1.50x" in lines[1]
    assert lines[1].endswith("4.00 x compile (at least 5): MISSED by 1.25x")
    assert "5.00 copies (at most 2.5): MISSED by 2.00x" in lines[2]
    assert "1.75 copies (at most 1.75): met; 4.00 x compile (at least 5): MISSED" in lines[3]


def test_aims_of_what_was_not_measured_are_not_judged() -> None:
    failed = {**_record("nuclei"), "rows": [{"status": "FAILED"}]}
    assert aims.verdicts([_record("tiny", clones=1.0, copies=1.0), failed]) == ""
    alone = {**_record("nuclei", clones=1.0, copies=1.0), "speedups": {}}
    assert aims.verdicts([alone]).endswith("1.00 copies (at most 2): met\n")


def test_aims_are_of_workloads_that_there_are() -> None:
    for (device, _), of_workloads in aims.AIMS.items():
        here = {w.name for w in workloads.WORKLOADS if device in w.devices}
        assert here.issuperset(of_workloads)


def test_only_ours(tmp_path: Path) -> None:
    assert _short_run(tmp_path, "--only-ours") == 0
    (record,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["name"] for row in record["rows"]] == ["discloss_cuda"]
    assert record["speedups"] == {}


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_comparison_of_variants(tmp_path: Path) -> None:
    files = [tmp_path / f"card-{name}.json" for name in ("default", "tiles")]
    for file, factor in zip(files, (1.0, 2.0), strict=True):
        record = _cuda_record()
        record["rows"][0]["both"]["copies"] = factor
        record["rows"][0]["graph"] = {"copies": 0.5} if factor == 1 else {}
        if factor == 2:
            del record["rows"][0]["graph"]
        report.write_json(file, {}, [record])
    lines = [line.split() for line in compare.table(files).splitlines()]
    assert lines == [
        ["copies", "default", "tiles"],
        ["tiny", "float32", "both", "1.000", "2.000"],
        ["tiny", "float32", "graph", "0.500", "-"],
    ]


RUN_ON_GPU = Path(bench_loss.__file__).parent / "run_on_gpu.sh"


def _dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": "the-python", "COMMIT": "abc123"}
    command = ["bash", str(RUN_ON_GPU), "--dry-run", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_script_for_a_gpu_names_what_is_there(tmp_path: Path) -> None:
    """Every stage in order; each program, test and workload that is named exists."""
    run = _dry_run("--out", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"
    lines = run.stdout.splitlines()
    stages = [line.removeprefix("== ") for line in lines if line.startswith("== ")]
    assert stages == ["build", "test", "sanitize", "bench", "variants", "profile"]
    commands = [shlex.split(line) for line in lines if line.startswith("  ")]
    root = RUN_ON_GPU.parents[1]
    known = {workload.name for workload in workloads.WORKLOADS}
    for command in commands:
        for before, word in itertools.pairwise(command):
            if before == "--workload":
                assert word in known
            if word.startswith(("tests/", "benchmarks/")) or word == "setup.py":
                assert (root / word).exists(), word
        if "benchmarks/bench_loss.py" in command:
            after = command[command.index("benchmarks/bench_loss.py") + 1 :]
            with pytest.raises(SystemExit) as stop:  # it can parse them, but for the device
                bench_loss.main(["--help", *after])
            assert stop.value.code == 0
            assert after[after.index("--commit") + 1] == "abc123"
    tools = [command[command.index("--tool") + 1] for command in commands if "--tool" in command]
    assert tools == ["memcheck", "racecheck", "synccheck", "initcheck"]
    builds = [command for command in commands if "--build-lib" in command]
    macros = [command[1].removeprefix("NVCC_APPEND_FLAGS=").split() for command in builds]
    assert macros[0] == []
    source = "".join(path.read_text() for path in (root / "csrc").glob("*/cuda/*"))
    for (macro,) in macros[1:]:  # a name that the kernels do not have would change nothing
        assert f"#ifndef {macro.removeprefix('-D').partition('=')[0]}\n" in source
    assert len({command[-1] for command in builds}) == len(builds), "folders of their own"


def test_the_script_for_a_gpu_takes_stages() -> None:
    text = _dry_run("bench", "build").stdout
    assert [line for line in text.splitlines() if line.startswith("==")] == ["== bench", "== build"]
    wrong = _dry_run("benches")
    assert wrong.returncode == 2
    assert "expected a stage of: build test sanitize" in wrong.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_for_a_gpu_stops_without_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(RUN_ON_GPU), "--out", str(tmp_path), "profile"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "finds no CUDA device" in run.stderr


def test_results_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    machine = {"date": "2030-01-02T03:04:05", "cpu": "Some(R) CPU @ 3 GHz"}
    first = report.default_file(machine)
    assert first.name == "2030-01-02-some-r-cpu-3-ghz.json"
    report.write_json(first, machine, [])
    assert report.default_file(machine).name == "2030-01-02-some-r-cpu-3-ghz-2.json"


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"group": "discloss_cuda", "both": {"copies": 2.0}}, {"group": "eager"}]
    record = {"workload": "tiny", "dtype": "float32", "rows": rows}
    report.write_plot(tmp_path / "out.png", {"cpu": "some", "torch": "2"}, [record])
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_plot_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        bench_loss.main(["--device", "cpu", "--plot", "a.png"])
    assert "--plot needs matplotlib" in capsys.readouterr().err
