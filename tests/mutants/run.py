"""Shows that the tests can fail: applies each seeded bug and expects its tests to notice.

    python tests/mutants/run.py [NAME ...]

Every ``NAME.patch`` here is one bug, with a header of lines ``Bug:`` (what is wrong) and ``Tests:``
(arguments for pytest: the tests that must fail). All named tests are first shown to pass without
a bug. The work is done on a copy of the tree, which must have been built, under
``build/mutants``; the tree itself stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPY = ROOT / "build" / "mutants"
TESTS_FAILED = 1  # pytest's exit status; 2 and above: it could not run them


@dataclass(frozen=True)
class Mutant:
    """A patch with a seeded bug, and the tests that must notice it."""

    name: str
    patch: Path
    bug: str
    tests: tuple[str, ...]

    @property
    def needs_build(self) -> bool:
        """Whether the bug is looked for in what setup.py compiles (the emulator builds itself)."""
        host_source = re.compile(r"^\+\+\+ b/csrc/(?!\w+/cuda/)", re.MULTILINE)
        emulated = "cuda_emulated" in " ".join(self.tests)
        return host_source.search(self.patch.read_text()) is not None and not emulated


def read_mutants(names: list[str]) -> list[Mutant]:
    """The mutants of these names, or all of them."""
    mutants = []
    for patch in sorted(HERE.glob("*.patch")):
        header = dict(re.findall(r"^(Bug|Tests): (.*)$", patch.read_text(), re.MULTILINE))
        mutants.append(
            Mutant(patch.stem, patch, header["Bug"], tuple(shlex.split(header["Tests"])))
        )
    unknown = set(names) - {mutant.name for mutant in mutants}
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")
    return [mutant for mutant in mutants if not names or mutant.name in names]


def run(*command: str | Path, quiet: bool = True) -> int:
    """Exit status of a command in the copy."""
    result = run_in_copy(*command)
    if not quiet:
        print(result.stdout, end="", flush=True)
    return result.returncode


def run_in_copy(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in the copy, with what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(COPY), "FORCE_CUDA": "0"}
    return subprocess.run(
        command,
        cwd=COPY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def copy_tree() -> None:
    """Bring the copy up to date, keeping what has been built there."""
    COPY.mkdir(parents=True, exist_ok=True)
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        source, target = ROOT / name, COPY / name
        if source.is_file() and not (
            target.exists() and target.read_bytes() == source.read_bytes()
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def copy_extension() -> None:
    """Give the copy the extension without a bug."""
    modules = list(ROOT.glob("discloss_cuda/_C.*.so"))
    if not modules:
        sys.exit("discloss_cuda is not built: make build")
    for module in modules:
        shutil.copy(module, COPY / "discloss_cuda")


def build() -> None:
    """Compile the extension in the copy."""
    if run(sys.executable, "setup.py", "build_ext", "--inplace", quiet=False) != 0:
        sys.exit("the extension does not build")


def tests_status(tests: tuple[str, ...]) -> int:
    """Exit status of pytest over some tests in the copy."""
    return run(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests)


def apply(mutant: Mutant, *, reverse: bool = False) -> None:
    """Put a bug into the copy, or take it out."""
    flags = ["--reverse"] if reverse else []
    # Not `git apply`: the copy lies in a directory that git ignores.
    command = ["patch", "-p1", "--no-backup-if-mismatch", *flags, "-i", str(mutant.patch)]
    if run(*command, quiet=False) != 0:
        sys.exit(f"{mutant.patch.name} does not apply")


def survives(mutant: Mutant) -> bool:
    """Whether the tests pass in spite of the bug."""
    apply(mutant)
    try:
        if mutant.needs_build:
            build()
        status = tests_status(mutant.tests)
    finally:
        apply(mutant, reverse=True)
        copy_extension()
    if status > TESTS_FAILED:
        sys.exit(f"{mutant.name}: pytest could not run {shlex.join(mutant.tests)}")
    return status != TESTS_FAILED


def report(total: int, missed: list[str]) -> None:
    """The last line, and the exit status."""
    print(f"{total - len(missed)} passed, {len(missed)} failed")
    if missed:
        sys.exit(f"not noticed: {', '.join(missed)}")


def main() -> None:
    """Run the mutants named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to run (default: all)")
    mutants = read_mutants(parser.parse_args().names)
    copy_tree()
    copy_extension()
    for mutant in mutants:
        if tests_status(mutant.tests) != 0:
            sys.exit(f"{mutant.name}: without the bug, {shlex.join(mutant.tests)} does not pass")
    survivors = []
    for mutant in mutants:
        survived = survives(mutant)
        survivors += [mutant.name] * survived
        print(f"{'SURVIVED' if survived else 'caught':9}{mutant.name}: {mutant.bug}", flush=True)
    report(len(mutants), survivors)


if __name__ == "__main__":
    main()
