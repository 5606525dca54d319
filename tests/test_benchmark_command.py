"""The command line of the benchmark: it tells right from wrong and writes down what it measured."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from measuring import baselines, measure, memory, report, timing
from measuring.baselines import Implementation
from measuring.workloads import Problem
from support.benchmarks import short_run
from torch import Tensor


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory takes a process an implementation: one test does that, not all."""
    monkeypatch.setattr(memory, "cpu_peak", lambda make, threads: 1_500_000)


def _with(monkeypatch: pytest.MonkeyPatch, *more: Implementation) -> None:
    """Adds implementations to those that the benchmark compares."""
    known = baselines.implementations(quick=True)
    monkeypatch.setattr(measure, "implementations", lambda *, quick: [*known, *more])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert short_run(tmp_path) == 0
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
    assert short_run(tmp_path) == 1
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
    assert short_run(tmp_path) == 0, "a baseline that does not fit is no error"
    out = capsys.readouterr().out
    assert "huge                  | out of memory: would need about 1152921505 GB" in out
    assert "surprise              | out of memory\n" in out

    _with(monkeypatch, Implementation("broken", "broken", lambda problem: broken))
    assert short_run(tmp_path) == 1
    assert "| FAILED: ZeroDivisionError: of the baseline" in capsys.readouterr().out


@pytest.mark.usefixtures("no_memory")
def test_all_formulations_on_request(tmp_path: Path) -> None:
    assert short_run(tmp_path, "--all", "--quick") == 0
    rows = json.loads((tmp_path / "out.json").read_text())["results"][0]["rows"]
    assert sum("both" in row for row in rows if row["group"] == "eager") == 4


@pytest.mark.usefixtures("no_memory")
def test_only_ours(tmp_path: Path) -> None:
    assert short_run(tmp_path, "--only-ours") == 0
    (record,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["name"] for row in record["rows"]] == ["discloss_cuda"]
    assert record["speedups"] == {}


def test_results_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    machine = {"date": "2030-01-02T03:04:05", "cpu": "Some(R) CPU @ 3 GHz"}
    first = report.default_file(machine)
    assert first.name == "2030-01-02-some-r-cpu-3-ghz.json"
    report.write_json(first, machine, [])
    assert report.default_file(machine).name == "2030-01-02-some-r-cpu-3-ghz-2.json"
