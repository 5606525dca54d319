"""The CUDA toolkit as the tests need it: there must be one, on a machine without a GPU too."""

from __future__ import annotations

from build_tools.nvcc import NvccNotFoundError, Toolkit, find_toolkit

from . import ROOT


def packages() -> list[str]:
    """The packages that are a toolkit together."""
    lines = (ROOT / "requirements" / "cuda.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def require_toolkit() -> Toolkit:
    """The toolkit that the package is built with, or an error that says how to get one."""
    try:
        return find_toolkit()
    except NvccNotFoundError as error:
        raise NvccNotFoundError(
            f"{error}. The tests compile the CUDA kernels with or without a GPU: "
            f"pip install {' '.join(packages())}"
        ) from error
