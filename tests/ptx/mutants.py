"""Mistakes seeded into PTX: one instruction that has been executed, changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import ARCHITECTURES, Instruction, Interpreter


@dataclass(frozen=True)
class Mutant:
    """A file in which one line is another one."""

    path: Path
    line: int
    before: str
    after: str

    def write(self, folder: Path) -> Path:
        """The file with the mistake."""
        lines = self.path.read_text().splitlines(keepends=True)
        assert lines[self.line - 1].strip() == self.before
        lines[self.line - 1] = f"\t{self.after}\n"
        mutated = folder / self.path.name
        mutated.write_text("".join(lines))
        return mutated

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}: {self.before} -> {self.after or 'nothing'}"


# Each gives the line that takes the place of the one at an index of a file, or None. All of them
# change what a kernel does: what might be right after all is left alone.


def without_barrier(lines: Sequence[str], index: int) -> str | None:
    """Of those behind which shared memory is accessed; the last of a kernel orders nothing, unless
    it is in a loop."""
    if not re.fullmatch(r"bar\.sync\s+0;", lines[index]):
        return None
    behind = lines[index + 1 : lines.index("}", index)]
    return "" if any(".shared" in line for line in behind) else None


def goes_back(lines: Sequence[str], index: int, before: int) -> bool:
    """Whether a line is a branch to what lies before another one."""
    branch = re.search(r"\bbra\S*\s+(\$\w+);", lines[index])
    return branch is not None and f"{branch[1]}:" in lines[:before]


def add_for_sub(lines: Sequence[str], index: int) -> str | None:
    changed = re.sub(r"^sub\.(f32|f64)", r"add.\1", lines[index])
    return changed if changed != lines[index] else None


def shifted_store(lines: Sequence[str], index: int) -> str | None:
    """By one vector, which stays aligned."""
    store = re.fullmatch(r"(st\.(\S+)\s+\[[^+\]]+)(?:\+(-?\d+))?(\].*)", lines[index])
    if store is None or "param" in store[2]:
        return None
    vector = re.search(r"(?:v(\d)\.)?[a-z](\d+)$", store[2])
    assert vector is not None, lines[index]
    width = int(vector[1] or 1) * int(vector[2]) // 8
    return f"{store[1]}+{int(store[3] or 0) + width}{store[4]}"


def inverted_predicate(lines: Sequence[str], index: int) -> str | None:
    """Of a loop."""
    if not lines[index].startswith("@") or not goes_back(lines, index, index):
        return None
    negated = lines[index].startswith("@!")
    return f"@{lines[index][2:]}" if negated else f"@!{lines[index][1:]}"


KINDS: dict[str, Callable[[Sequence[str], int], str | None]] = {
    "barrier removed": without_barrier,
    "add for sub": add_for_sub,
    "shifted store": shifted_store,
    "loop inverted": inverted_predicate,
}


def mutants(
    device: Interpreter, capability: int, executed: list[Instruction], kind: str
) -> Iterator[Mutant]:
    """One for each executed instruction of a kind, in the order of kernels and lines."""
    paths = [each.ptx[ARCHITECTURES[capability]] for each in device.compiled]
    texts = {path: path.read_text() for path in paths}
    lines = {path: [line.strip() for line in text.splitlines()] for path, text in texts.items()}
    for each in executed:
        if each.warps == 0 or each.line == 0:
            continue
        (path,) = [p for p in paths if f".entry {each.kernel}(" in texts[p]]
        after = KINDS[kind](lines[path], each.line - 1)
        if after is not None:
            yield Mutant(path, each.line, lines[path][each.line - 1], after)
