"""The benchmark of clustering: its inputs are what they say, and times stand beside true scores."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_clustering
import pytest
import torch
from measuring import clustering_measure, clustering_report, clustering_rivals
from measuring.clustering_measure import Settings, look, measure
from measuring.clustering_rivals import Implementation
from measuring.clustering_workloads import DELTA_DIST, WORKLOADS, Problem, apart, trained
from support.cases import voronoi_labels
from torch import Tensor

from discloss_cuda.metrics import instance_scores

QUICK = Settings(threads=1, calls=3, seconds=60.0, give_up=120.0, processes=False)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def _rival(name: str) -> Implementation:
    return next(i for i in clustering_rivals.implementations() if i.name == name)


# --- inputs ---------------------------------------------------------------------------------------


def test_means_are_apart() -> None:
    points = apart(40, 3, 2.5, torch.Generator().manual_seed(0))
    assert torch.pdist(points).min().item() >= 2.5


def test_clean_embeddings_lie_around_means_that_are_apart() -> None:
    labels = voronoi_labels((40, 40), 6, background=0.4)
    x = trained(labels, 5, sigma=0.1, mixed=0.0)
    means = torch.stack([x[:, labels == k].mean(1) for k in range(1, 7)])
    assert torch.pdist(means).min().item() > 2 * DELTA_DIST - 0.2
    spread = torch.cat(
        [
            torch.linalg.vector_norm(x[:, labels == k] - means[k - 1][:, None], dim=0)
            for k in range(1, 7)
        ]
    )
    assert 0.05 < spread.median().item() < 0.1
    assert spread.max().item() < 0.6


def test_mixed_pixels_are_the_share_that_is_asked_for() -> None:
    labels = voronoi_labels((100, 100), 5, background=0.4)
    clean, mixed = (trained(labels, 6, sigma=0.1, mixed=share) for share in (0.0, 0.1))
    inside = labels != 0
    means = torch.stack([clean[:, labels == k].mean(1) for k in range(1, 6)])
    away = torch.linalg.vector_norm(mixed[:, inside] - means[labels[inside] - 1].t(), dim=0) > 0.5
    assert 0.07 < away.float().mean().item() < 0.13


@pytest.mark.parametrize(("name", "instances"), [("crops", [17, 17, 17, 14]), ("bars", None)])
def test_real_embeddings(name: str, instances: list[int] | None) -> None:
    problem = BY_NAME[name].make()
    assert problem.embeddings.shape == (4, 8, 128, 128)
    assert problem.embeddings.isfinite().all()
    assert problem.instances() == (instances or [11, 9, 11, 8])


def test_every_workload_of_the_package_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_clustering.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [workload.name for workload in WORKLOADS if not workload.hidden]
    assert bench_clustering.main(["--list", "--quick"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    with pytest.raises(SystemExit, match=r"--workload: expected one of tiny, .*, got none"):
        bench_clustering.main(["--workload", "none"])


# --- rivals ---------------------------------------------------------------------------------------


def _clean(dim: int = 4) -> Problem:
    labels = voronoi_labels((40, 40), 5, background=0.5)
    return Problem(trained(labels, dim, sigma=0.05, mixed=0.0)[None], labels[None])


@pytest.mark.parametrize(
    "rival",
    [i for i in clustering_rivals.implementations() if i.name.startswith(("dense", "auth"))]
    + [i for i in clustering_rivals.implementations() if i.module is not None],
    ids=lambda rival: rival.name,
)
@pytest.mark.filterwarnings("ignore")
def test_rivals_find_what_cannot_be_missed(rival: Implementation) -> None:
    if rival.missing():
        pytest.skip(f"{rival.package} is not installed")
    problem = _clean()
    scores = instance_scores(rival.make(problem)(), problem.labels)
    if rival.name.startswith("faiss"):  # may begin with two means in one instance
        assert scores.ari.item() > 0.5
    else:
        assert scores.ap.item() == 1.0


def test_dense_definition_is_the_references() -> None:
    for name in ("tiny", "tiny-clouds"):
        problem = BY_NAME[name].make()
        dense = _rival("dense PyTorch").make(problem)()
        expected = _rival("reference").make(problem)()
        scores = instance_scores(dense, expected, problem.offsets)
        assert scores.ari.min().item() > 0.99
        assert scores.dic.max().item() == 0


def test_small_clusters_are_no_instances() -> None:
    """Labels below 1, and those of fewer than 20 points."""
    problem = Problem(torch.zeros(1, 2, 60), torch.ones(1, 60, dtype=torch.int64))

    def labels_of(x: Any, instances: int) -> Any:
        assert (x.shape, instances) == ((60, 2), 1)
        return torch.tensor([-1] * 10 + [0] * 5 + [3] * 19 + [4] * 26).numpy()

    ids = clustering_rivals._of_points(labels_of, problem)()
    assert ids.tolist() == [[0] * 34 + [4] * 26]


# --- measuring ------------------------------------------------------------------------------------


def _only(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Problem], Callable[[], Tensor]], **more: Any
) -> None:
    """The truth as ours, and one rival."""
    known = [Implementation("ours", lambda problem: lambda: problem.labels)]
    known.append(Implementation("rival", make, **more))
    monkeypatch.setattr(clustering_measure, "implementations", lambda: known)


def test_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_and_wrong(problem: Problem) -> Callable[[], Tensor]:
        def run() -> Tensor:
            time.sleep(0.02)
            held = torch.ones(4_000_000)  # 16 MB
            return problem.foreground.to(torch.int64) + 0 * int(held[0])

        return run

    _only(monkeypatch, slow_and_wrong)
    record = measure(BY_NAME["tiny"], QUICK)
    ours, rival = record["rows"]
    assert (record["shape"], record["instances"]) == ([1, 4, 40, 40], [5])
    assert ours["ap"] == ours["ari"] == ours["sbd"] == 1.0
    assert (ours["found"], ours["dic"]) == (5.0, 0.0)
    assert (rival["found"], rival["dic"], rival["ari"]) == (1.0, 4.0, 0.0)
    assert rival["q20_ms"] <= rival["median_ms"] <= rival["q80_ms"]
    assert rival["median_ms"] >= 20
    assert rival["times_ours"] == pytest.approx(rival["median_ms"] / rival["ours_beside_ms"])
    assert rival["copies"] == pytest.approx(rival["median_ms"] / rival["copy_ms"])
    assert 15e6 < rival["peak_bytes"] < 30e6
    assert (rival["calls"], rival["once"]) == (3, False)
    table = clustering_report.table(record)
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["ours", "rival"]


def test_what_takes_long_is_called_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def make(problem: Problem) -> Callable[[], Tensor]:
        return lambda: (calls.append(1), time.sleep(0.01), problem.labels)[-1]

    _only(monkeypatch, make)
    monkeypatch.setattr(clustering_measure, "LONG", 0.005)
    short = dataclasses.replace(QUICK, seconds=0.001)
    row = look("tiny", "rival", short)
    assert (row["once"], row["calls"], len(calls)) == (True, 1, 1)
    record = measure(BY_NAME["tiny"], short)
    assert "timed once" in clustering_report.table(record).splitlines()[-1]


def test_what_cannot_be_timed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(problem: Problem) -> Callable[[], Tensor]:
        raise RuntimeError("no luck\nat all")

    _only(monkeypatch, broken)
    assert look("tiny", "rival", QUICK) == {"status": "FAILED: RuntimeError: no luck"}
    _only(monkeypatch, broken, package="some-package", module="no_such_module")
    status = measure(BY_NAME["tiny"], QUICK)["rows"][1]["status"]
    assert status == "missing: pip install some-package"
    _only(monkeypatch, broken, unsuited=lambda problem: "takes no images")
    record = measure(BY_NAME["tiny"], QUICK)
    assert record["rows"][1]["status"] == "unsuited: takes no images"
    assert "takes no images" in clustering_report.table(record)


def test_a_process_is_stopped() -> None:
    arguments = ("tiny", "dense PyTorch", QUICK)
    stopped = clustering_measure._in_a_process(arguments, give_up=0.01)
    assert stopped == {"status": "stopped after 0 s"}


def test_verdicts() -> None:
    rows = [{"name": clustering_report.OURS, "copies": 2.0, "ap": 0.7}]
    records = [{"workload": name, "rows": rows} for name in ("clean-k30", "k30", "crops", "tiny")]
    lines = clustering_report.verdicts(records).splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines[1:]] == ["MISSED", "met", "met"]
    assert clustering_report.verdicts(records[3:]) == ""


def test_plot(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    row = {"name": clustering_report.OURS, "status": "ok", "median_ms": 2.0, "ap": 0.5}
    records = [
        {"workload": name, "rows": [row, {"name": "x", "status": "missing"}]} for name in "ab"
    ]
    clustering_report.write_plot(
        tmp_path / "out.png", {"cpu": "some", "threads": 1, "clock": "cpu"}, records
    )
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, lambda problem: lambda: torch.zeros_like(problem.labels))
    file = tmp_path / "out.json"
    options = ["--workload", "tiny", "--calls", "3", "--seconds", "0.1", "--in-process"]
    assert bench_clustering.main([*options, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["machine"].keys() >= {"date", "commit", "torch", "cpu", "threads"}
    ours, rival = found["results"][0]["rows"]
    assert (ours["ap"], rival["ap"]) == (1.0, 0.0)
    assert bench_clustering.main([*options, "--only", "riv*"]) == 0
    table = capsys.readouterr().out.rpartition("tiny: ")[2]
    assert "rival" in table
    assert "\nours" not in table


def test_time_of_the_process_leaves_out_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, lambda problem: lambda: (time.sleep(0.05), problem.labels)[1])
    wall, cpu = (
        look("tiny", "rival", dataclasses.replace(QUICK, clock=clock)) for clock in ("wall", "cpu")
    )
    assert wall["median_ms"] >= 50
    assert cpu["median_ms"] < 25
