"""Shows that every barrier of the kernels is needed: removes each and expects a test to notice.

    python tests/mutants/barriers.py [FILE[:LINE] ...]

Without arguments, every ``__syncthreads``, ``__syncthreads_or``, ``__syncwarp`` and
``cluster_barrier`` under csrc/*/cuda.
The work is done where that of run.py is. Prints a row of the table of barriers in docs/ for each.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from run import COPY, ROOT, copy_extension, copy_tree, report, run_in_copy

SEEDS = range(4)
# Many tiles (the last one shorter) and one, more channels than a tile holds, more instances than a
# block has threads, instances in one image and in none, ignored ids, both kinds of batch, both
# norms.
CASES = (
    "two_hundred_instances",
    "d100",
    "mixed_counts",
    "image_d16",
    "long_d16",
    "norm1_d33",
    "clouds_long_d8",
    "several_ignored",
)
TESTS = (
    "tests/test_values.py",
    "-k",
    f"test_every_case and cuda_emulated and ({' or '.join(f'-{name}]' for name in CASES)})",
)


@dataclass(frozen=True)
class Barrier:
    """A call in a source, and the same source without it."""

    path: Path
    line: int
    code: str
    comment: str
    source_without: str

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.line}"


def end_of_call(source: str, start: int) -> int:
    """Where the call whose name begins at ``start`` ends."""
    depth = 0
    for at in range(source.index("(", start), len(source)):
        depth += {"(": 1, ")": -1}.get(source[at], 0)
        if depth == 0:
            return at + 1
    raise ValueError(f"unbalanced parentheses behind {source[start : start + 40]!r}")


def barriers() -> Iterator[Barrier]:
    """Every barrier of the kernels, in the order of files and lines."""
    for path in sorted((ROOT / "csrc").glob("*/cuda/*.cu*")):
        source = path.read_text()
        for match in re.finditer(
            r"\b(?:__sync(?:threads\w*|warp)|(?<!void )cluster_barrier)\b", source
        ):
            end = end_of_call(source, match.start())
            argument = source[match.end() : end] if "threads_" in match[0] else "(void)0"
            line = source.count("\n", 0, match.start()) + 1
            yield Barrier(
                path,
                line,
                source[match.start() : end],
                source.splitlines()[line - 1].partition("//")[2].strip(),
                source[: match.start()] + argument + source[end:],
            )


def what_noticed(output: str) -> str:
    """The failed test and the emulator's message, or the assertion."""
    test = re.search(r"^FAILED \S+\[cuda_emulated-(\w+)\]", output, re.MULTILINE)
    race = re.search(r"race: .*?/(\w+\.cuh?:\d+).*/(\w+\.cuh?:\d+)", output)
    other = re.search(r"^E +(\S.*)", output, re.MULTILINE)
    message = f"race of {race[1]} and {race[2]}" if race else other[1][:80] if other else "?"
    return f"{test[1] if test else '?'}: {message}"


def notice(barrier: Barrier) -> str:
    """What notices that a barrier is missing, or an empty string."""
    path = COPY / barrier.path.relative_to(ROOT)
    original = path.read_text()
    path.write_text(barrier.source_without)
    try:
        for seed in SEEDS:
            result = tests(seed)
            if result.returncode == 1:
                return f"seed {seed}, {what_noticed(result.stdout)}"
            if result.returncode != 0:
                sys.exit(f"{barrier.place}: pytest could not run:\n{result.stdout}")
    finally:
        path.write_text(original)
    return ""


def tests(seed: int) -> subprocess.CompletedProcess[str]:
    """The tests in the copy under schedules of a seed."""
    flags = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=short", f"--seed={seed}")
    return run_in_copy(sys.executable, "-m", "pytest", *flags, *TESTS)


def main() -> None:
    """Remove the barriers named on the command line, or all, one at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*", metavar="FILE[:LINE]")
    places = parser.parse_args().places
    chosen = [b for b in barriers() if not places or {b.path.name, b.place} & set(places)]
    copy_tree()
    copy_extension()
    intact = tests(0)
    if intact.returncode != 0:
        sys.exit(f"with all barriers, the tests do not pass:\n{intact.stdout}")
    missed = []
    for barrier in chosen:
        noticed = notice(barrier)
        missed += [barrier.place] * (not noticed)
        what = barrier.comment or f"`{barrier.code}`"
        print(f"| {barrier.place} | {what} | {noticed or 'NOT NOTICED'} |", flush=True)
    report(len(chosen), missed)


if __name__ == "__main__":
    main()
