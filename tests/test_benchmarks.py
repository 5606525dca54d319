"""The benchmark tells right from wrong, and writes down what it measured."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import baselines
import bench_loss
import exact
import measure
import memory
import report
import timing
import workloads
from baselines import Implementation
from workloads import LabelMap, Problem, Workload

from discloss_cuda import reference

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
    assert sum(row.startswith("eager ") for row in rows) == 1, "only the best formulation"

    found = json.loads((tmp_path / "out.json").read_text())
    assert found["machine"].keys() >= {"date", "commit", "torch", "cpu", "threads"}
    (record,) = found["results"]
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


def test_cuda_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of events around one call, on a stand-in for the device."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 250.0

    class Buffer:
        def zero_(self) -> None:
            log.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(timing, "_flush_buffer", Buffer)

    def prepare() -> str:
        log.append("prepare")
        return "run"

    work = timing.Work(log.append, prepare)
    series = timing.sampler(work, "cuda", threads=1).sample(0.0)
    assert series.summary()["median_ms"] == 250.0
    assert series.summary()["host_ms"] < 50.0
    assert log == ["prepare", "wait", "flush", "event", "run", "event", "wait"] * 2


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


def test_cuda_table() -> None:
    """On CUDA the host's time stands where the CPU's table has clones."""
    phase = {"median_ms": 1.0, "q20_ms": 0.5, "q80_ms": 2.0, "copies": 3.0, "host_ms": 0.25}
    row: dict[str, Any] = dict.fromkeys(timing.PHASES, phase | {"gb_per_s": 1234.0})
    row |= {"name": "ours", "status": "ok", "shown": True, "peak_bytes": None}
    row |= {"loss_error": 1e-7, "grad_error": 2e-7}
    problem = workloads.build(PROBLEMS["tiny"], torch.float32, "cpu")
    record = measure.describe(PROBLEMS["tiny"], problem, "float32", "cuda")
    record |= {"copy_": {"median_ms": 0.5, "gb_per_s": 4000.0}, "rows": [row]}
    *_, groups, titles, line, end = report.table(record).split("\n")
    assert "host" in groups
    assert "x clone" not in groups
    assert len(titles) == len(line)
    assert line[titles.index("      ms|") :].startswith("   0.250|")
    assert end == ""


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
