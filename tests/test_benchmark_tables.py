"""What the benchmark prints of its measurements: tables, summaries, aims, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compare
import torch
from measuring import aims, measure, report, timing, workloads
from support.benchmarks import PROBLEMS


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
