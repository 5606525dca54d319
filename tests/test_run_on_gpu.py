"""The script for a machine with a GPU, as far as one without can run it."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import bench_loss
import pytest
import torch
from measuring import workloads

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
