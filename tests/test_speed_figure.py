"""The speed figure shows the numbers of a result file, and the committed one those of its file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_loss
from measuring import figure, report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "2026-11-23-amd-epyc-2-cores-float32.json"
SHOWN = ("small", "2d-k16", "2d-k1000", "volume", "nuclei-batch", "embryo-clouds")


def description_of(path: Path) -> str:
    return str(pytest.importorskip("PIL.Image").open(path).text["Description"])


def record(**copies: float) -> dict[str, Any]:
    rows = [{"group": group, "both": {"copies": value}} for group, value in copies.items()]
    fixed = {"workload": "tiny", "about": "for tests: two", "dtype": "bfloat16", "instances": 5}
    return {**fixed, "shape": [2, 4, 24, 20], "rows": [*rows, {"group": "reference"}]}


def test_bars_have_the_length_of_the_best_of_each_group() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    one = record(discloss_cuda=2.0, eager=40.0)
    one["rows"].append({"group": "eager", "both": {"copies": 30.0}})
    two = record(discloss_cuda=5.0)
    figure_, axes = pyplot.subplots()
    figure._draw_bars(axes, [one, two])
    found = [(patch.get_width(), round(patch.get_y() + 0.1)) for patch in axes.patches]
    assert found == [(2.0, 0), (5.0, 1), (30.0, 0)], "what was not measured has no bar"
    pyplot.close(figure_)


def test_a_result_file_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plot, kept = tmp_path / "out.png", tmp_path / "out.json"
    options = ["--workload", "vol*", "--workload", "small", "--plot", str(plot)]
    assert bench_loss.main(["--from", str(RESULTS), *options, "--json", str(kept)]) == 0
    machine, records = report.read_json(kept)
    everything = report.read_json(RESULTS)
    assert machine == everything[0]
    assert [each["workload"] for each in records] == ["small", "volume", "volume-k10000"]
    assert records == [each for each in everything[1] if each in records]
    text = capsys.readouterr().out
    assert all(report.table(each) in text for each in records)
    assert description_of(plot) == figure.description(records)


def test_the_committed_figure_is_that_of_its_file() -> None:
    """docs/performance.md has the command."""
    records = [each for each in report.read_json(RESULTS)[1] if each["workload"] in SHOWN]
    assert description_of(ROOT / "docs" / "figures" / "speed.png") == figure.description(records)
    command = (ROOT / "docs" / "performance.md").read_text()
    assert RESULTS.name in command
    assert all(f"--workload {name}" in command for name in SHOWN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--from", "missing.json"],
            "--from: expected a file that --json has written, got m",
        ),
        (["--from", str(RESULTS), "--workload", "none"], "expected one of small float32, 2d-k16"),
        (["--from", str(RESULTS), "--dtype", "bfloat16"], "expected one of small float32, 2d-k16"),
    ],
)
def test_a_wrong_choice_is_an_error(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        bench_loss.main(options)
    assert message in f"{error.value} {capsys.readouterr().err}"


def test_plot_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        bench_loss.main(["--device", "cpu", "--plot", "a.png"])
    assert "--plot needs matplotlib" in capsys.readouterr().err
