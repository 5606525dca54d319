"""Which folder of csrc may include which: what knows no op includes none, and ops do not meet. And
where a build of the kernels may choose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT

OPS = {"loss", "clustering"}


def forbidden_includes(csrc: Path) -> list[str]:
    """Lines of ``csrc/<folder>`` that include a file of an op that is not the folder's own."""
    found = []
    for path in sorted(path for path in csrc.glob("*/**/*") if path.is_file()):
        folder = path.relative_to(csrc).parts[0]
        for name in re.findall(r'^\s*#\s*include\s+["<](.+?)[">]', path.read_text(), re.MULTILINE):
            beside = (path.parent / name).resolve()
            target = beside.relative_to(csrc.resolve()) if beside.exists() else Path(name)
            if target.parts[0] in OPS - {folder}:
                found.append(f"{path.relative_to(csrc)}: {name}")
    return found


def test_nothing_includes_a_folder_it_must_not_know() -> None:
    assert len(list((ROOT / "csrc").glob("common/cuda/*"))) > 5
    assert forbidden_includes(ROOT / "csrc") == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("common/cuda/tile.cuh", '#include "loss/loss_math.h"'),
        ("common/check.h", "#  include <clustering/clustering.h>"),
        ("common/cpu/simd.h", '#include "../../loss/loss_math.h"'),
        ("clustering/cuda/peaks.cu", '#include "loss/cuda/launch.h"'),
        ("loss/autograd.h", '#include "clustering/clustering.h"'),
    ],
)
def test_such_an_include_is_found(place: str, line: str, tmp_path: Path) -> None:
    for other in ("loss/loss_math.h", "common/host_device.h", place):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_text('#pragma once\n#include "common/host_device.h"\n')
    assert forbidden_includes(tmp_path) == []
    (tmp_path / place).write_text(f"#pragma once\n{line}\n")
    (found,) = forbidden_includes(tmp_path)
    assert found.startswith(f"{place}: ")


def test_what_a_build_may_choose_stands_in_one_place() -> None:
    tuning = ROOT / "csrc" / "common" / "cuda" / "tuning.h"
    macros = re.findall(r"^#ifndef (DISCLOSS_\w+)$", tuning.read_text(), re.MULTILINE)
    assert len(macros) > 5
    others = [path for path in (ROOT / "csrc").glob("**/*.*") if path != tuning]
    readers = [path.name for path in others if any(m in path.read_text() for m in macros)]
    assert readers == []
