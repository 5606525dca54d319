"""Whether the kernels execute more than the committed counts say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .counts import KernelCounts

COMMITTED = Path(__file__).resolve().parents[1] / "results" / "counts-sm_90.json"
UPDATE = f"python benchmarks/count_kernels.py --json benchmarks/results/{COMMITTED.name}"
EXACT = ("ptx", "sectors", "wavefronts", "registers")
ALLOWED = 1.03
FEW = 1  # per 512 pixels: below that, counts are those of a launch and not of its pixels


def risen(
    found: Sequence[KernelCounts], committed: Sequence[dict[str, Any]], allowed: float = ALLOWED
) -> list[str]:
    """What has risen by more than is allowed, and which kernels have come or gone."""
    before = {each["kernel"]: each for each in committed}
    now = {each.kernel: each.to_json() for each in found}
    complaints = [f"{name} is new" for name in now.keys() - before.keys()]
    complaints += [f"{name} is not launched" for name in before.keys() - now.keys()]
    for name in now.keys() & before.keys():
        for figure in EXACT:
            old, new = before[name][figure], now[name][figure]
            if new > max(allowed * old, old + FEW * (figure != "registers")):
                complaints.append(f"{name}: {figure} {old} -> {new}")
    return sorted(complaints)
