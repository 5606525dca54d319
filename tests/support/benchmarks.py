"""The benchmark on small inputs."""

from __future__ import annotations

from pathlib import Path

import bench_loss
import torch
from measuring import workloads
from measuring.workloads import LabelMap, Workload

RAGGED = torch.tensor([[7, 7, 3, 3, 3, 0, 0, 9, 9, 9], [5, 5, 5, 5, 5, 5, 5, 5, 0, 0]])


def _clouds() -> LabelMap:
    return LabelMap(torch.arange(60).reshape(-1) % 7, offsets=torch.tensor([0, 25, 25, 31, 60]))


PROBLEMS = {
    "tiny": workloads.WORKLOADS[0],
    "ragged": Workload("ragged", 3, "", lambda: LabelMap(RAGGED, ignore_label=0)),
    "clouds": Workload("clouds", 5, "", _clouds),
}


def short_run(tmp_path: Path, *options: str) -> int:
    """The command line on the smallest workload."""
    fixed = ["--device", "cpu", "--threads", "1", "--workload", "tiny", "--dtype", "float32"]
    files = ["--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")]
    return bench_loss.main(
        [*fixed, *files, "--rounds", "1", "--seconds", "0.001", "--no-compile", *options]
    )
