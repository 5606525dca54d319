"""Time over the number of pixels N: the discriminative loss, and the loss over pairs of pixels.

Forward and backward of one image of N pixels. The first is linear in N, the second quadratic; it
stops where a call would take longer than --limit.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import report
from measuring.clustering_measure import CLOCKS
from measuring.figure import GROUND, LINES
from torch import Tensor

from discloss_cuda import discriminative_loss, reference

Record = dict[str, Any]

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, tuple[int, Loss]] = {  # the power of N that its time should grow with
    "discriminative loss": (1, lambda x, ids: discriminative_loss(x, ids, max_instances=64)),
    "loss over pairs": (2, lambda x, ids: reference.pairwise_loss(x, ids).loss),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--pixels", type=int, nargs="+", default=[2**k for k in range(8, 19)], help="N, rising")
    add("--dim", type=int, default=8, help="D")
    add("--instances", type=int, default=16, help="K, at most 64")
    add("--calls", type=int, default=5, help="of which the fastest counts")
    add("--limit", type=float, default=30.0, help="seconds of a call")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--clock", choices=CLOCKS, default="wall", help="cpu: time of the process, one thread")
    add("--json", metavar="FILE", type=Path, help="write all numbers, with machine and versions")
    add("--plot", metavar="FILE", type=Path, help="draw them (matplotlib)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    machine = report.environment("cpu", options.threads, None)
    machine["clock"] = options.clock
    records = [times_over_pixels(name, options.pixels, options) for name in LOSSES]
    print(table(records))
    if options.json:
        report.write_json(options.json, machine, records)
    if options.plot:
        write_plot(options.plot, machine, records)
    return 0


def times_over_pixels(name: str, pixels: Sequence[int], options: argparse.Namespace) -> Record:
    """Milliseconds of one loss, and the exponent p of the last part, time ~ N^p."""
    power, loss = LOSSES[name]
    points: list[Record] = []
    last = 0.0
    for number, before in zip(pixels, [pixels[0], *pixels], strict=False):
        if last * (number / before) ** power > options.limit:
            break
        generator = torch.Generator().manual_seed(0)
        x = 3 * torch.randn(1, options.dim, number, generator=generator)
        labels = torch.randint(options.instances, (1, number), generator=generator)
        _seconds(loss, x, labels, options.clock)
        last = min(_seconds(loss, x, labels, options.clock) for _ in range(options.calls))
        points.append({"pixels": number, "best_ms": last * 1e3})
    return {"name": name, "points": points, "exponent": exponent(points)}


def exponent(points: list[Record]) -> float | None:
    """The slope of log time over log N through the last four points; None for fewer than two."""
    last = points[-4:]
    if len(last) < 2:
        return None
    n, ms = (np.log([point[key] for point in last]) for key in ("pixels", "best_ms"))
    return float(np.polyfit(n, ms, 1)[0])


def _seconds(loss: Loss, x: Tensor, labels: Tensor, clock: str) -> float:
    leaf = x.clone().requires_grad_()
    began = CLOCKS[clock]()
    loss(leaf, labels).backward()
    return CLOCKS[clock]() - began


def table(records: list[Record]) -> str:
    """Milliseconds, a line a number of pixels, and the exponents."""
    columns = [{p["pixels"]: p["best_ms"] for p in record["points"]} for record in records]
    lines = ["".join([f"{'N':>9}", *(f"{record['name'] + ' ms':>25}" for record in records)])]
    for pixels in sorted({pixels for column in columns for pixels in column}):
        values = (f"{report.number(column.get(pixels)):>25}" for column in columns)
        lines.append("".join([f"{pixels:>9}", *values]))
    exponents = (f"{report.number(record['exponent']):>25}" for record in records)
    return "\n".join([*lines, "".join([f"{'time ~ N^':>9}", *exponents])])


def write_plot(path: Path, machine: Record, records: list[Record]) -> None:
    """Both axes logarithmic."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(5.5, 3.6), layout="constrained", facecolor=GROUND)
    for record in records:
        n, ms = ([p[key] for p in record["points"]] for key in ("pixels", "best_ms"))
        axes.loglog(n, ms, marker="o", label=record["name"])
    axes.set(xlabel="pixels", ylabel="ms, forward + backward")
    axes.set_title(
        f"{machine['cpu']}, {machine['threads']} thread(s), {machine['clock']} time", fontsize=9
    )
    axes.grid(color=LINES)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
