"""Builds ``discloss_cuda._C``: csrc/*.cpp and csrc/*/cpu everywhere, csrc/*/cuda where nvcc is.

nvcc compiles only sources without torch headers, and its runtime is linked statically. So the
CUDA backend builds beside any build of torch, and the module imports wherever that torch does.

Beside a torch without CUDA, which can make no CUDA tensor, the CUDA backend is left out unless it
is asked for by either of the first two variables.

Environment: ``FORCE_CUDA=1`` asks for CUDA and makes a missing nvcc an error, ``FORCE_CUDA=0``
leaves CUDA out; ``TORCH_CUDA_ARCH_LIST`` (as in "8.0;9.0+PTX"), ``MAX_JOBS``, ``CXXFLAGS`` and
``NVCC_APPEND_FLAGS`` mean what they mean elsewhere; objects for other ``NVCC_APPEND_FLAGS`` are
kept apart, so that builds with other macros do not undo each other.
"""

import functools
import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ModuleNotFoundError as error:
    sys.exit(
        f"discloss_cuda is compiled against the torch that it will run with, but: {error}. "
        "Install torch, then: pip install ."
    )

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from build_tools.nvcc import NvccNotFoundError, Toolkit, find_toolkit  # noqa: E402
from build_tools.progress import compiling, say  # noqa: E402

DEFAULT_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
NVCC_FLAGS = ["-O3", "-lineinfo", "-Xcompiler=-fPIC,-Wall,-Wextra"]
CXX_FLAGS = ["-O3", "-g0", "-fno-math-errno", "-Wall", "-Wextra"]
NVCC_RULE = """\
rule nvcc
  command = {command} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
"""


@functools.cache
def cuda_toolkit() -> Toolkit | None:
    """The toolkit to build the CUDA backend with, or None to leave it out."""
    force = os.environ.get("FORCE_CUDA", "")
    if force == "0":
        return None
    if torch.version.cuda is None and not (force or os.environ.get("TORCH_CUDA_ARCH_LIST")):
        print(
            "discloss_cuda: building without the CUDA backend: this torch has no CUDA; "
            "FORCE_CUDA=1 or TORCH_CUDA_ARCH_LIST builds it for one that has",
            file=sys.stderr,
        )
        return None
    try:
        return find_toolkit()
    except NvccNotFoundError as error:
        if force:
            sys.exit(f"FORCE_CUDA={force}: {error}")
        print(f"discloss_cuda: building without the CUDA backend: {error}", file=sys.stderr)
        return None


def cuda_architectures(toolkit: Toolkit) -> list[str]:
    """Compute capabilities to compile for, as in "9.0", "9.0a" or "9.0+PTX"."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split():
        return listed
    if torch.cuda.is_available():
        gpus = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return [f"{major}.{minor}" for major, minor in sorted(gpus)]
    *others, newest = (name for name in DEFAULT_ARCHITECTURES if name in toolkit.architectures)
    return [*others, f"{newest}+PTX"]


def gencode_flags(architectures: list[str]) -> list[str]:
    flags = []
    for architecture in architectures:
        found = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", architecture)
        if found is None:
            sys.exit(f'TORCH_CUDA_ARCH_LIST: expected it like "8.0;9.0+PTX", got {architecture!r}')
        number = found[1] + found[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if found[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def kernel_objects(build: str) -> Path:
    """Where the objects of csrc/*/cuda/*.cu are kept: nvcc adds flags that ninja does not see."""
    flags = os.environ.get("NVCC_APPEND_FLAGS", "")
    suffix = f"-{hashlib.sha256(flags.encode()).hexdigest()[:12]}" if flags else ""
    return Path(build, f"nvcc{suffix}")


def compile_kernels(toolkit: Toolkit, directory: Path) -> list[str]:
    """Objects of csrc/*/cuda/*.cu, compiled by ninja where a source, header or flag has changed."""
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
    architectures = cuda_architectures(toolkit)
    targets = gencode_flags(architectures)
    command = [str(toolkit.nvcc), *NVCC_FLAGS, f"-I{ROOT / 'csrc'}", *targets, f"--threads={jobs}"]
    lines = [NVCC_RULE.format(command=shlex.join(command).replace("$", "$$"))]
    objects = []
    sources = sorted(ROOT.glob("csrc/*/cuda/*.cu"))
    for source in sources:
        objects.append(str(directory / f"{source.name}.o"))
        output, origin = (re.sub(r"([$: ])", r"$\1", path) for path in (objects[-1], str(source)))
        lines.append(f"build {output}: nvcc {origin}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "build.ninja").write_text("\n".join(lines) + "\n")
    say(f"{len(sources)} CUDA sources to bring up to date for {' '.join(architectures)}")
    with compiling(directory, [str(source.relative_to(ROOT)) for source in sources]):
        subprocess.run(["ninja", "-j", jobs, "-C", str(directory)], check=True)
    return objects


def compiled_module(toolkit: Toolkit | None) -> CppExtension:
    folders = ["csrc", "csrc/*/cpu"] + ["csrc/*/cuda"] * (toolkit is not None)
    sources = [path for folder in folders for path in sorted(ROOT.glob(f"{folder}/*.cpp"))]
    architectures = cuda_architectures(toolkit) if toolkit else []
    openmp = "-fopenmp" if torch.backends.openmp.is_available() else "-fopenmp-simd"
    module = CppExtension(
        "discloss_cuda._C",
        [str(path.relative_to(ROOT)) for path in sources],
        define_macros=[
            ("AT_PER_OPERATOR_HEADERS", None),  # else some of torch's headers include every op
            ("DISCLOSS_WITH_CUDA", str(int(toolkit is not None))),
            ("DISCLOSS_CUDA_ARCHITECTURES", f'"{" ".join(architectures)}"'),
            ("DISCLOSS_CUDA_VERSION", f'"{toolkit.version if toolkit else ""}"'),
        ],
        extra_link_args=[openmp],
    )
    # Other people's headers come by -isystem, so that warnings are about our own.
    headers = [*include_paths(), *(toolkit.include_dirs if toolkit else ())]
    module.include_dirs = [str(ROOT / "csrc")]
    module.extra_compile_args = [*CXX_FLAGS, openmp, *(f"-isystem{path}" for path in headers)]
    module.extra_compile_args += shlex.split(os.environ.get("CXXFLAGS", ""))
    if toolkit:
        module.library_dirs.append(str(toolkit.library_dir))
        module.libraries += ["cudart_static", "rt", "dl", "pthread"]
        # Its symbols must not meet those of the shared runtime that torch may have loaded.
        module.extra_link_args.append("-Wl,--exclude-libs,libcudart_static.a")
    return module


class BuildModule(BuildExtension):
    """Keeps objects in build/ whatever the kind of install, so that every one is incremental."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = f"{ROOT}/build/{sys.implementation.cache_tag}-torch-{torch.__version__}"

    def build_extension(self, ext: CppExtension) -> None:
        if toolkit := cuda_toolkit():
            ext.extra_objects = compile_kernels(toolkit, kernel_objects(self.build_temp))
        backends = "CPU and CUDA" if toolkit else "CPU"
        say(f"{len(ext.sources)} C++ sources to bring up to date for {backends}")
        with compiling(Path(self.build_temp), ext.sources):
            super().build_extension(ext)


if __name__ == "__main__":
    # ninja is beside this Python, whether or not its environment is activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    major, minor, *_ = torch.__version__.split(".")
    setup(
        # What is compiled for one torch fits no other; typing_extensions comes with torch.
        install_requires=[f"torch=={major}.{minor}.*", "typing_extensions"],
        ext_modules=[compiled_module(cuda_toolkit())],
        cmdclass={"build_ext": BuildModule},
    )
