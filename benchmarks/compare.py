"""Forward + backward in copies of the embedding, one column a file of `bench_loss.py --json`.

    python benchmarks/compare.py FILE.json ...

From files of the same card only: the unit is a copy in the run that wrote the file.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

NAME_WIDTH = 28


def table(files: Sequence[Path]) -> str:
    """A line a workload, queued and by a CUDA graph; a dash for what a file lacks."""
    stems = [file.stem for file in files]
    letters = zip(*stems, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda places: len(set(places)) == 1, letters))
    titles = [stem[shared:] or stem for stem in stems]
    cells: dict[str, list[str]] = {}
    for column, file in enumerate(files):
        for record in json.loads(file.read_text())["results"]:
            ours = record["rows"][0]
            for phase in ("both", "graph"):
                name = f"{record['workload']} {record['dtype']} {phase}"
                line = cells.setdefault(name, ["-"] * len(files))
                if phase in ours:
                    line[column] = f"{ours[phase]['copies']:.3f}"
    width = max([10, *(len(title) + 2 for title in titles)])
    lines = ["".join([f"{'copies':{NAME_WIDTH}}", *(f"{title:>{width}}" for title in titles)])]
    for name, line in cells.items():
        if set(line) != {"-"}:
            lines.append("".join([f"{name:{NAME_WIDTH}}", *(f"{cell:>{width}}" for cell in line)]))
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(table([Path(name) for name in sys.argv[1:]]))
