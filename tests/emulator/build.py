"""Compiles the emulator together with the sources it runs, with the host's C++ compiler."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import ROOT
from support.nvcc import require_toolkit

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "emulator"
EMULATOR_SOURCES = (
    "barriers.cpp",
    "device.cpp",
    "fiber.cpp",
    "races.cpp",
    "runtime.cpp",
    "undefined_behaviour.cpp",
)

# Symbols stay inside the library: it has functions of libcudart, and kernels and checks that the
# package's own library has too.
FLAGS = (
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-DDISCLOSS_EMULATED",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)

# For kernels: checks whose reports come to undefined_behaviour.cpp and races.cpp, and the line
# numbers that the latter names.
UNDEFINED = "-fsanitize=alignment,null,bounds,shift,signed-integer-overflow,integer-divide-by-zero"
CHECKED = (UNDEFINED, "-fsanitize=thread", "-g1")

# Instead of races, accesses outside of allocated memory and of a block's shared memory. Stacks are
# left out: AddressSanitizer knows nothing of fibers.
CHECKED_BOUNDS = (UNDEFINED, "-fsanitize=address", "--param=asan-stack=0", "-g1")


@dataclass(frozen=True)
class Source:
    """A file and the flags that it needs besides ``FLAGS``."""

    path: Path
    flags: Sequence[str] = ()


def emulator_sources() -> list[Source]:
    return [Source(HERE / name) for name in EMULATOR_SOURCES]


def finds_bounds() -> bool:
    """Whether this process runs under AddressSanitizer, for which kernels are compiled then."""
    return hasattr(ctypes.CDLL(None), "__asan_init")


def kernel_source(path: Path) -> Source:
    """CUDA code, kernels and launchers, as C++."""
    return Source(path, ("-x", "c++", *(CHECKED_BOUNDS if finds_bounds() else CHECKED)))


def _ninja_file(
    sources: Sequence[Source], library: str, link_flags: Sequence[str], objects: Sequence[Path]
) -> str:
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    includes += [f"-isystem {path}" for path in require_toolkit().include_dirs]
    lines = [
        f"cxx = {os.environ.get('CXX', 'g++')}",  # clang checks no alignment of whole structs
        f"flags = {' '.join([*FLAGS, *includes])}",
        "rule compile",
        "  command = $cxx $flags $more -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cxx -shared -pthread -Wl,-z,defs $in -o $out $more",
    ]
    inputs = [str(path) for path in objects]
    for source in sources:
        inputs.append(f"{source.path.name}.o")
        lines.append(f"build {inputs[-1]}: compile {source.path}")
        lines.append(f"  more = {' '.join(source.flags)}")
    lines.append(f"build {library}: link {' '.join(inputs)}")
    lines.append(f"  more = {' '.join(link_flags)}")
    return "\n".join([*lines, ""])


def build(
    name: str,
    sources: Sequence[Source],
    link_flags: Sequence[str] = (),
    objects: Sequence[Path] = (),
) -> Path:
    """The shared library of these sources, compiled as far as it is not up to date, and of objects
    that exist."""
    if finds_bounds():
        name = f"{name}_bounds"
        link_flags = [*link_flags, "-fsanitize=address"]
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    library = f"{name}.so"
    with (folder / "lock").open("w") as lock:  # for test runners that work side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(_ninja_file(sources, library, link_flags, objects))
        jobs = os.environ.get("MAX_JOBS", "2")
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), "-j", jobs, library]
        # The compiler is not to run under a sanitizer that this process runs under.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        result = subprocess.run(
            ninja, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
    if result.returncode != 0:
        raise RuntimeError(f"the emulator does not compile:\n{result.stdout}")
    return folder / library
