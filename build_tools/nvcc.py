"""Finds a CUDA toolkit: the compiler, its headers, the static runtime library.

Looked for in this order: ``CUDA_HOME``, ``CUDA_PATH``, ``nvcc`` on ``PATH``, ``/usr/local/cuda``,
the packages of ``requirements/cuda.txt`` in this Python's ``site-packages``. Compiling needs no
GPU and no driver.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class NvccNotFoundError(Exception):
    """There is no CUDA compiler; the message says where it was looked for."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile and link."""

    nvcc: Path
    include_dirs: tuple[Path, ...]
    library_dir: Path  # of libcudart_static.a

    @functools.cached_property
    def version(self) -> str:
        """Release of the compiler, as in "13.0"."""
        return _search(r"release ([\d.]+)", _run(self.nvcc, "--version"))

    @functools.cached_property
    def architectures(self) -> tuple[str, ...]:
        """Every compute capability it compiles for, as in "9.0"."""
        found = re.findall(r"compute_(\d+)(\d)\b", _run(self.nvcc, "--list-gpu-arch"))
        return tuple(f"{major}.{minor}" for major, minor in found)


@functools.cache
def find_toolkit() -> Toolkit:
    """The first toolkit that is complete."""
    looked_at = []
    for root in _roots():
        include_dir = _holding("cuda_runtime.h", root, "include", "targets/*/include")
        library_dir = _holding("libcudart_static.a", root, "lib64", "lib", "targets/*/lib")
        nvcc = root / "bin" / "nvcc"
        if nvcc.exists() and include_dir and library_dir:
            include_dirs = (include_dir, include_dir / "cccl")
            return Toolkit(nvcc, tuple(d for d in include_dirs if d.is_dir()), library_dir)
        looked_at.append(f"{root} is incomplete")
    raise NvccNotFoundError(
        "found no CUDA toolkit (nvcc, cuda_runtime.h, libcudart_static.a) in CUDA_HOME, CUDA_PATH, "
        "on PATH, in /usr/local/cuda or in site-packages"
        + "".join(f"; {message}" for message in looked_at)
    )


def _roots() -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield Path(home)
    if on_path := shutil.which("nvcc"):
        yield _root_of(Path(on_path))
    if (default := Path("/usr/local/cuda")).is_dir():
        yield default
    yield from sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu[0-9]*"), reverse=True)


def _root_of(nvcc: Path) -> Path:
    """The toolkit of an nvcc that may be a link or a script: it knows itself where that is."""
    try:
        dry_run = _run(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull)
    except subprocess.CalledProcessError:
        return nvcc  # it does not run, so it has none
    return Path(_search(r"^#\$ TOP=(.+)$", dry_run)).resolve()


def _holding(name: str, root: Path, *patterns: str) -> Path | None:
    """The first directory of ``root`` that matches a pattern and holds a file of that name."""
    for pattern in patterns:
        for directory in sorted(root.glob(pattern)):
            if (directory / name).exists():
                return directory
    return None


def _run(*command: Path | str) -> str:
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return result.stdout


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise NvccNotFoundError(f"expected {pattern!r} in the output of nvcc, got {text!r}")
    return found[1]


if __name__ == "__main__":
    try:
        toolkit = find_toolkit()
    except NvccNotFoundError as error:
        raise SystemExit(str(error)) from None
    print(f"{toolkit.nvcc}, release {toolkit.version}")
