"""The package's call with ops that do nothing (`nothing.cpp`): what its host time is measured in.

Compiled at first use, for the torch that is installed; everything above the kernels is the
package's own, from the public function to the gradient registered in C++.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

from discloss_cuda import _ops

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def ops() -> _ops.Ops:
    """The ops, for `_ops.use`; an exception where there is no compiler."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja
    folder = ROOT / "build" / f"nothing-{sys.implementation.cache_tag}-torch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(
        name="discloss_nothing",
        sources=[str(ROOT / "benchmarks" / "measuring" / "nothing.cpp")],
        extra_include_paths=[str(ROOT / "csrc")],
        build_directory=str(folder),
        extra_cflags=["-O3"],
        with_cuda=False,
        is_python_module=False,
    )
    return _ops.bind("discloss_nothing")
