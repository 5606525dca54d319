"""What the package aims at, forward + backward, and how far a run is from it.

A copy reads the embedding and writes as much: the least that a loss with its gradient can cost is
one. On a CPU it is a `clone()`, on a GPU a `copy_` on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]  # as measure.py makes them


@dataclass(frozen=True)
class Aim:
    """Bounds of one workload; None: there is none."""

    copies: float | None = None  # at most
    eager: float | None = None  # times as fast as the best in eager PyTorch, at least
    compiled: float | None = None  # times as fast as the best under torch.compile, at least
    ready: bool = False  # copies are the faster of `clone()` and a `copy_` into a ready buffer


# Dense, K <= 200: whatever the shape.
_DENSE = Aim(None, 8, 3)

# (device, dtype) -> name of a workload -> its aim. On a CPU, of two threads.
AIMS = {
    ("cpu", "float32"): {
        "small": _DENSE,
        "2d-k16": Aim(2.5, 8, 5, ready=True),
        "2d-k64": Aim(1.3, 8, 5),
        "2d-k200": Aim(1.5, 8, 5),
        "2d-batch": Aim(1.5, 8, 5),
        "2d-k1000": Aim(5, None, 6),
        "random-ids": _DENSE,
        "clip": _DENSE,
        "volume": Aim(1.5, 8, 3),
        "nuclei": Aim(2, 8, 5),
        "nuclei-batch": Aim(2, 8, 5),
        "embryo-clip": _DENSE,
        "embryo-clouds": Aim(4, None, 5),
    },
    ("cpu", "bfloat16"): dict.fromkeys(
        (
            "small",
            "2d-k16",
            "2d-k64",
            "2d-k200",
            "2d-batch",
            "random-ids",
            "clip",
            "volume",
            "nuclei",
            "nuclei-batch",
            "embryo-clip",
        ),
        _DENSE,
    ),
    ("cuda", "float32"): {
        "2d-batch": Aim(1.75, None, 5),
        "2d-k64": Aim(1.75, None, 5),
        "2d-k200": Aim(1.75, None, 5),
        "clip": Aim(1.75, None, 5),
        "volume-large": Aim(1.75, None, 5),
        "2d-k1000": Aim(2.5, None, 5),
        "volume-k10000": Aim(2.5, None, 5),
        "embryo-clouds": Aim(3, None, 5),
    },
    ("cuda", "bfloat16"): {"2d-batch": Aim(1.9, None, 5)},
}


def _copies(record: Record, aim: Aim) -> float:
    both = record["rows"][0]["both"]
    if record["device"] == "cuda":
        return float(both["copies"])
    return float(max(both["clones"], both["copies"]) if aim.ready else both["clones"])


def _findings(record: Record, aim: Aim) -> Iterator[str]:
    """A few words on each bound that the run can be held to."""
    speedups = record["speedups"]
    bounds: tuple[tuple[str, float | None, float | None, bool], ...] = (
        ("copies", _copies(record, aim), aim.copies, True),
        ("x eager", speedups.get("eager"), aim.eager, False),
        ("x compile", speedups.get("torch.compile"), aim.compiled, False),
    )
    for unit, value, bound, is_most in bounds:
        if value is None or bound is None:
            continue
        shortfall = value / bound if is_most else bound / value
        verdict = "met" if shortfall <= 1 else f"MISSED by {shortfall:.2f}x"
        yield f"{value:.2f} {unit} ({'at most' if is_most else 'at least'} {bound:g}): {verdict}"


def verdicts(records: list[Record]) -> str:
    """One line for each workload that has an aim: measured, asked, and by how much it is missed."""
    lines = []
    for record in records:
        aim = AIMS.get((record["device"], record["dtype"]), {}).get(record["workload"])
        if aim is not None and "both" in record["rows"][0]:
            name = f"{record['workload']} {record['dtype']}"
            lines.append(f"{name:28}{'; '.join(_findings(record, aim))}")
    return "\n".join(["aims, forward + backward:", *lines, ""]) if lines else ""
