"""Builds against the torch that is installed, also under build isolation (PEP 517, in tree).

pip builds in an environment that has what ``[build-system] requires`` lists and hides the packages
of the Python that it installs for. torch cannot be listed: another one than is installed would be
downloaded, and a module compiled against it does not import. So it is shown again, behind what is
listed; where there is none, the first hook of a build fails.
"""

from __future__ import annotations

import importlib.util
import site
import sys

from setuptools.build_meta import *  # type: ignore[import-untyped] # noqa: F403


def show_torch() -> None:
    """Put the packages of this Python back on the path, unless torch is there."""
    if importlib.util.find_spec("torch"):
        return
    folders = site.getsitepackages()
    if sys.prefix == sys.base_prefix:  # no virtual environment
        folders.append(site.getusersitepackages())
    for folder in folders:
        site.addsitedir(folder)
    importlib.invalidate_caches()
    if importlib.util.find_spec("torch") is None:
        sys.exit(
            "discloss_cuda is compiled against the torch that it will run with, and there is none "
            f"in {', '.join(folders)}. Install torch there, then: pip install .\n"
            "Where a build gets an environment of its own (uv, python -m build), install "
            '"setuptools>=77" and ninja beside torch and turn isolation off: '
            "uv pip install --no-build-isolation . or python -m build --no-isolation"
        )


show_torch()
