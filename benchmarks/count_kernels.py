"""What the compiled CUDA kernels execute, on a machine without a GPU. These are counts, not times.

    python benchmarks/count_kernels.py [--workload NAME ...] [--card NAME] [--json FILE]

Runs forward and backward on what nvcc makes of the kernels (tests/ptx) and prints, per 512 pixels,
what each executes; for a card, which of its limits that comes to first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring.cards import CARDS, Card
from measuring.counts import TILE, WORKLOADS, CountedWorkload, KernelCounts, count

from support.cuda_report import compiler_version  # isort: skip  (measuring.counts finds it)

NOTE = "These are counts, not times: no GPU has run anything here."
COLUMNS = (
    "kernel",
    "PTX",
    "SASS (est.)",
    "sectors (least)",
    "wavefronts (least)",
    "registers",
    "warps",
    "in flight",
    "bound",
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    torch.set_num_threads(1)
    card = CARDS[options.card]
    print(f"{NOTE}\nPer {TILE} pixels; nvcc {compiler_version()}, sm_90. Card: {_about(card)}")
    results = {}
    for name in options.workload or WORKLOADS:
        found = count(WORKLOADS[name])
        results[name] = [each.to_json() for each in found]
        print(f"\n{_heading(WORKLOADS[name])}\n\n{table(found, card)}", flush=True)
        if options.kinds:
            print(f"\n{kinds(found)}")
    if options.json:
        options.json.write_text(json.dumps(document(results), indent=1) + "\n")
    return 0


def document(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What --json writes."""
    about = {"note": NOTE, "pixels": TILE, "compiler": compiler_version(), "architecture": 90}
    return {**about, "workloads": results}


def table(counts: Sequence[KernelCounts], card: Card) -> str:
    """Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row(each, card) for each in counts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(counts: KernelCounts, card: Card) -> list[str]:
    limit, ratio = card.bound(counts)
    return [
        counts.kernel,
        f"{counts.ptx:,.0f}",
        f"{counts.sass:,.0f}",
        f"{counts.sectors:,.0f} ({counts.least_sectors:,.0f})",
        f"{counts.wavefronts:,.0f} ({counts.least_wavefronts:,.0f})",
        str(counts.registers),
        str(counts.warps_resident),
        f"{counts.bytes_in_flight / 1024:.1f} KB",
        limit if limit == "memory" else f"{limit}, {ratio:.1f} x memory",
    ]


def kinds(counts: Sequence[KernelCounts]) -> str:
    """A line for each kernel: PTX executions by kind."""
    lines = []
    for each in counts:
        numbers = [f"{kind} {number:,.0f}" for kind, number in each.kinds.items() if number >= 1]
        lines.append(f"{each.kernel}: {', '.join(numbers)}")
    return "\n".join(lines)


def _heading(workload: CountedWorkload) -> str:
    shape = f"[1, {workload.channels}, {workload.shape[0]}, {workload.shape[1]}]"
    return f"{workload.name}: {workload.about}, {shape}"


def _about(card: Card) -> str:
    return (
        f"{card.name}, {card.multiprocessors} multiprocessors, {card.gigahertz} GHz, "
        f"{card.gigabytes_per_second:,.0f} GB/s ({card.source})"
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), help="default: all")
    parser.add_argument("--card", choices=list(CARDS), default="H200")
    parser.add_argument("--kinds", action="store_true", help="PTX executions by kind, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
