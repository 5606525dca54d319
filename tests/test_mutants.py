"""The seeded bugs of tests/mutants are bugs of this tree: they apply to it, and name its tests.

That the tests notice them is shown by tests/mutants/run.py.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

PATCHES = sorted((ROOT / "tests" / "mutants").glob("*.patch"))


def why_it_does_not_apply(patch: Path, tree: Path) -> str:
    """What git says of a patch, nothing if it applies."""
    # Not as a part of a repository around the tree: git would pass over the files that it ignores.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    command = ["git", "apply", "--check", str(patch)]
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return result.stderr if result.returncode != 0 else ""


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_stale_patch_is_found(tmp_path: Path) -> None:
    patch = tmp_path / "one.patch"
    patch.write_text("--- a/file\n+++ b/file\n@@ -1 +1 @@\n-right\n+wrong\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("right\n")
    assert why_it_does_not_apply(patch, tree) == ""
    (tree / "file").write_text("changed\n")
    assert "patch does not apply" in why_it_does_not_apply(patch, tree)
    (tree / "file").unlink()
    assert "No such file" in why_it_does_not_apply(patch, tree)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_patch_applies(patch: Path) -> None:
    assert why_it_does_not_apply(patch, ROOT) == ""


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_patch_names_a_bug_and_its_tests(patch: Path) -> None:
    header = dict(re.findall(r"^(Bug|Tests): (.+)$", patch.read_text(), re.MULTILINE))
    assert header.keys() == {"Bug", "Tests"}
    files = [word for word in shlex.split(header["Tests"]) if word.startswith("tests/")]
    assert files
    for name in files:
        assert (ROOT / name.partition("::")[0]).is_file(), name
