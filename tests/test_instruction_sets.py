"""The CPU kernels for instruction sets that are not this processor's best.

Which one runs is decided once in a process, within what ATEN_CPU_CAPABILITY allows torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
NARROWER = {"DEFAULT": [], "AVX2": ["default"], "AVX512": ["default", "avx2"]}


@pytest.mark.parametrize("capability", NARROWER.get(torch.backends.cpu.get_cpu_capability(), []))
def test_narrower_vectors(capability: str) -> None:
    files = [
        "test_values.py",
        "test_gradients.py",
        "test_determinism.py",
        "test_corner_cases.py::test_nothing_is_touched_beyond_the_inputs_and_the_gradient",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    on_the_cpu = ["-m", "not emulated", "-k", "not cuda"]
    run = subprocess.run(
        [*command, *on_the_cpu, *(str(TESTS / file) for file in files)],
        cwd=TESTS.parent,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
