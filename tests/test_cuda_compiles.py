"""The CUDA kernels compile for every architecture, without warnings, spills or local memory."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from nvcc import ROOT, packages, require_toolkit

from build_tools.nvcc import NvccNotFoundError

CUDA_SOURCES = ROOT / "csrc" / "cuda"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
FLAGS = (
    "-std=c++17",
    "-O3",
    "--Werror=all-warnings",
    "-Xptxas=-v,-warn-spills,-warn-lmem-usage",
    "-Xcompiler=-Wall,-Wextra",
)

# Two blocks of 256 threads share the 65536 registers of a multiprocessor.
MAX_REGISTERS = 128


@dataclass(frozen=True)
class Compiled:
    """What ptxas says about a kernel."""

    symbol: str
    registers: int
    stack_bytes: int
    spilled_bytes: int
    static_shared_bytes: int


def compile_kernels(source: Path, architecture: int, folder: Path) -> list[Compiled]:
    command = [
        str(require_toolkit().nvcc),
        *FLAGS,
        f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
        "-c",
        str(source),
        "-o",
        str(folder / "kernels.o"),
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    problems = [line for line in result.stdout.splitlines() if not is_usual(line)]
    assert result.returncode == 0, "\n".join(problems)
    return parse_report(result.stdout)


def is_usual(line: str) -> bool:
    return line.startswith("ptxas info") or line.endswith("0 bytes spill loads")


def parse_report(report: str) -> list[Compiled]:
    kernels = []
    for part in report.split("Compiling entry function '")[1:]:
        used = re.search(r"Used (\d+) registers(.*)", part)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", part)
        assert used is not None, part
        assert memory is not None, part
        shared = re.search(r"(\d+) bytes smem", used[2])
        kernels.append(
            Compiled(
                symbol=part.partition("'")[0],
                registers=int(used[1]),
                stack_bytes=int(memory[1]),
                spilled_bytes=int(memory[2]),
                static_shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return kernels


def kernel_names() -> set[str]:
    """The functions that are declared `__global__`, in any of the sources."""
    pattern = r"__global__\s+(?:__launch_bounds__\([^)]*\)\s*)?void\s+"
    pattern += r"(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\("
    names: set[str] = set()
    for path in sorted(CUDA_SOURCES.iterdir()):
        code = re.sub(r"//.*", "", path.read_text())
        found = re.findall(pattern, code)
        assert len(found) == len(re.findall(r"\b__global__\b", code)), path
        names.update(found)
    return names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_without_warnings_spills_or_local_memory(
    architecture: int, tmp_path: Path
) -> None:
    kernels = compile_kernels(CUDA_SOURCES / "launch.cu", architecture, tmp_path)
    for name in kernel_names():
        assert any(f"{len(name)}{name}" in kernel.symbol for kernel in kernels), name
    for kernel in kernels:
        assert kernel.registers <= MAX_REGISTERS, kernel
        assert kernel.stack_bytes == kernel.spilled_bytes == 0, kernel
        assert kernel.static_shared_bytes == 0, kernel  # the emulator has none


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("int unused;", "was declared but never referenced"),
        ("float a[64]; for (int i = 0; i < n; ++i) a[int(x[i])] = i; x[0] = a[n];", "Local memory"),
    ],
)
def test_complaint_of_the_compiler_is_an_error(
    statement: str, complaint: str, tmp_path: Path
) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(f"__global__ void bad_kernel(float* x, int n) {{ {statement} }}")
    with pytest.raises(AssertionError, match=complaint):
        compile_kernels(source, ARCHITECTURES[0], tmp_path)


def test_missing_compiler_is_an_error_that_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none_found() -> None:
        raise NvccNotFoundError("found no CUDA toolkit")

    monkeypatch.setattr("nvcc.find_toolkit", none_found)
    with pytest.raises(NvccNotFoundError) as error:
        require_toolkit()
    assert packages()
    assert all(package in str(error.value) for package in packages())
