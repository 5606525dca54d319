"""Compiles the kernels to PTX and their launchers with nvcc, and the interpreter they run on."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emulator.build import HERE as EMULATOR
from emulator.build import Source, build
from support.nvcc import ROOT, require_toolkit

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "ptx"
SOURCES = sorted(ROOT.glob("csrc/*/cuda/*.cu"))

# What a device of each compute capability runs: a build of the package has code for these.
ARCHITECTURES = {7: 75, 8: 80, 9: 90}

# The code of the package, with line numbers, and no machine code.
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC", f"-I{ROOT / 'csrc'}")

INTERPRETER = (
    "access_counts.cpp",
    "accesses.cpp",
    "arithmetic.cpp",
    "barriers.cpp",
    "body.cpp",
    "conversions.cpp",
    "grid.cpp",
    "launching.cpp",
    "meetings.cpp",
    "memory.cpp",
    "parser.cpp",
    "shared_memory.cpp",
)

# No product and sum are one operation but where PTX says so.
ROUNDED_TWICE = "-ffp-contract=off"


@dataclass(frozen=True)
class Compiled:
    """What nvcc makes of a source: the launchers as an object, the kernels as PTX."""

    object: Path
    ptx: dict[int, Path]  # by architecture

    @staticmethod
    def of(source: Path, folder: Path, architectures: Sequence[int]) -> Compiled:
        several = len(architectures) > 1  # else nvcc leaves the name out
        ptx = {
            n: folder / f"{source.stem}{f'.compute_{n}' if several else ''}.ptx"
            for n in architectures
        }
        return Compiled(folder / f"{source.stem}.o", ptx)


def _ninja_file(sources: Sequence[Source], folder: Path, architectures: Sequence[int]) -> str:
    targets = [f"-gencode=arch=compute_{n},code=compute_{n}" for n in architectures]
    keep = ["--keep", "--keep-dir", str(folder), f"--threads={os.environ.get('MAX_JOBS', '2')}"]
    command = [str(require_toolkit().nvcc), *FLAGS, *targets, *keep]
    lines = [
        "rule nvcc",
        f"  command = {shlex.join(command)} $more -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    for source in sources:
        made = Compiled.of(source.path, folder, architectures)
        lines.append(f"build {made.object}: nvcc {source.path}")
        lines.append(f"  more = {' '.join(source.flags)}")
    return "\n".join([*lines, ""])


def compile_with_nvcc(
    name: str, sources: Sequence[Source], architectures: Sequence[int]
) -> list[Compiled]:
    """The launchers and the PTX of these sources, as far as they are not up to date."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # for test runners that work side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(_ninja_file(sources, folder, architectures))
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j", "1"]
        result = subprocess.run(ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc does not compile the kernels:\n{result.stdout}")
    return [Compiled.of(source.path, folder, architectures) for source in sources]


def interpreter_sources() -> list[Source]:
    return [
        *(Source(HERE / name, (ROUNDED_TWICE,)) for name in INTERPRETER),
        Source(EMULATOR / "runtime.cpp"),
    ]


def build_samples() -> tuple[Path, list[Compiled]]:
    """The library with the kernels of the interpreter's own test, and their PTX."""
    source = Source(HERE / "sample_kernels.cu")
    compiled = compile_with_nvcc("samples", [source], list(ARCHITECTURES.values()))
    library = build("ptx_samples", interpreter_sources(), objects=[c.object for c in compiled])
    return library, compiled


def build_package() -> tuple[Path, list[Compiled]]:
    """The library with the package's launchers and ops, and the PTX of its kernels."""
    import torch
    from torch.utils import cpp_extension

    compiled = compile_with_nvcc(
        "package", [Source(path) for path in SOURCES], list(ARCHITECTURES.values())
    )
    includes = [f"-isystem {path}" for path in cpp_extension.include_paths()]
    names = ["-DEMULATED_NAMESPACE=discloss_cuda_compiled", "-DEMULATED_KEY=PrivateUse1"]
    sources = [
        *interpreter_sources(),
        Source(HERE / "tensors.cpp", includes),
        Source(EMULATOR / "binding.cpp", (*names, *includes)),
    ]
    libraries = [f"-L{path} -Wl,-rpath,{path}" for path in cpp_extension.library_paths()]
    library = build(
        f"ptx_torch_{torch.__version__}",
        sources,
        [*libraries, "-lc10", "-ltorch_cpu"],
        [made.object for made in compiled],
    )
    return library, compiled
