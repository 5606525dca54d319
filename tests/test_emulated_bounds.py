"""AddressSanitizer sees every access of the emulated kernels that leaves a tensor, or the shared
memory of a block: the same emulator, run in a process of its own with the sanitizer's library."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

# As in sample_kernels.cu.
READ_OUTSIDE_SHARED_MEMORY, READ_OUTSIDE_BUFFER, WRITE_OUTSIDE_BUFFER = 21, 19, 20
WRITE_OUTSIDE_SHARED_MEMORY = 12

# Tiles and vectors that end anywhere, channels and instances beyond a tile and a block, no pixels.
CASES = ("d17", "d100", "mixed_counts", "two_hundred_instances", "clouds_d3", "no_pixel", "norm1")


def under_address_sanitizer(*command: str) -> subprocess.CompletedProcess[str]:
    compiler = os.environ.get("CXX", "g++")
    library = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        # A fake stack for each fiber would be gigabytes; Python leaks by design.
        "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_sample(mistake: int, build: str = "samples") -> subprocess.CompletedProcess[str]:
    """A launch of 64 threads with data for just these."""
    script = f"""
import ctypes, emulator, numpy as np
device = emulator.{build}()
device.configure()
data = np.zeros(64, np.float32)
pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
print("error", device.library.sample_mistake(pointer, ctypes.c_int({mistake})))
"""
    return under_address_sanitizer("-c", script)


def test_right_kernel_is_not_reported() -> None:
    result = run_sample(0)
    assert result.returncode == 0, result.stdout
    assert "error 0" in result.stdout


@pytest.mark.parametrize(
    ("mistake", "what", "line"),
    [
        (READ_OUTSIDE_BUFFER, "READ of size 4", "data[threadIdx.x] += data[threadIdx.x + 5];"),
        (WRITE_OUTSIDE_BUFFER, "WRITE of size 4", "data[threadIdx.x + 5] = 1;"),
        (READ_OUTSIDE_SHARED_MEMORY, "READ of size 4", "= shared[threadIdx.x + 1];"),
        (WRITE_OUTSIDE_SHARED_MEMORY, "WRITE of size 4", "shared[blockDim.x + threadIdx.x] = 1;"),
    ],
)
def test_access_outside_is_reported_with_its_line(mistake: int, what: str, line: str) -> None:
    result = run_sample(mistake)
    assert result.returncode != 0
    assert f"{what} at" in result.stdout, result.stdout
    place = re.search(r"#0 .*sample_kernels\.cu:(\d+)", result.stdout)
    assert place is not None, result.stdout
    source = (TESTS / "emulator" / "sample_kernels.cu").read_text().splitlines()
    assert line in source[int(place[1]) - 1]


@pytest.mark.emulated
def test_build_of_the_package_is_not_blind() -> None:
    result = run_sample(WRITE_OUTSIDE_BUFFER, build="device")
    assert "WRITE of size 4 at" in result.stdout, result.stdout
    assert re.search(r"#0 .*sample_kernels\.cu:\d+", result.stdout), result.stdout


@pytest.mark.emulated
def test_package_kernels_stay_inside_of_their_tensors() -> None:
    chosen = " or ".join(f"emulated-{name}]" for name in CASES)
    tests = ("tests/test_values.py", "-k", f"test_every_case and ({chosen})")
    flags = ("-q", "-s", "-n", "0", "-p", "no:cacheprovider")  # the report is not to be captured
    result = under_address_sanitizer("-m", "pytest", *flags, *tests)
    assert result.returncode == 0, result.stdout
    assert f"{len(CASES)} passed" in result.stdout
