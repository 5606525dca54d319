"""The speed figure: forward and backward in multiples of a copy of the embedding."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # as measure.py makes them

# Group of implementations -> label and colour. An opaque, light ground keeps them clear on a dark
# page as well.
BARS = {
    "discloss_cuda": ("discloss_cuda", "#0b6fa4"),
    "torch.compile": ("best of torch.compile", "#e08a3c"),
    "eager": ("best of eager PyTorch", "#9aa7b2"),
    "reference": ("reference", "#ccd4da"),
}
GROUND, INK, LINES = "#fbfcfd", "#24292f", "#d5dbe0"
BAR_HEIGHT = 0.2  # of the distance between two workloads


def best_copies(record: Record) -> dict[str, float]:
    """Of each group of implementations, the multiple of a copy that its fastest one takes."""
    best: dict[str, float] = {}
    for row in record["rows"]:
        if "both" in row:
            copies = row["both"]["copies"]
            best[row["group"]] = min(copies, best.get(row["group"], copies))
    return best


def description(records: list[Record]) -> str:
    """The numbers of the figure in words, a line a workload; the PNG carries it."""
    lines = []
    for record in records:
        best = best_copies(record)
        numbers = ", ".join(
            f"{BARS[group][0]} {best[group]:.1f}" for group in BARS if group in best
        )
        lines.append(f"{record['workload']} {record['dtype']}: {numbers}")
    return "\n".join(lines)


def write_plot(path: Path, machine: dict[str, Any], records: list[Record]) -> None:
    """Bars on a logarithmic axis, which begins at one copy; a group of them for each workload."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    colours = {f"{part}.color": INK for part in ("text", "xtick", "ytick")}
    style = {"font.family": "DejaVu Sans", "font.size": 9, "axes.labelcolor": INK, **colours}
    with pyplot.rc_context(style):
        size = (8.6, 1.0 + 0.52 * len(records))
        figure, axes = pyplot.subplots(figsize=size, layout="constrained", facecolor=GROUND)
        _draw_bars(axes, records)
        _label(axes, machine, records)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Description": description(records), "Software": None}
        figure.savefig(path, dpi=180, format="png", metadata=metadata)
        pyplot.close(figure)


def _draw_bars(axes: Any, records: list[Record]) -> None:
    found = [best_copies(record) for record in records]
    for number, (group, (label, colour)) in enumerate(BARS.items()):
        places = [
            at + (number - 1.5) * BAR_HEIGHT for at, best in enumerate(found) if group in best
        ]
        copies = [best[group] for best in found if group in best]
        is_ours = group == "discloss_cuda"
        bars = axes.barh(places, copies, 0.92 * BAR_HEIGHT, label=label, color=colour, zorder=2)
        weight = "bold" if is_ours else "normal"
        texts = [f"{value:.1f}" if value < 9.95 else f"{value:.0f}" for value in copies]
        axes.bar_label(bars, texts, padding=3, fontsize=7.5 if is_ours else 6.5, fontweight=weight)


def _label(axes: Any, machine: dict[str, Any], records: list[Record]) -> None:
    names = [f"{_about(record)}\n{record['shape']}, K {record['instances']}" for record in records]
    axes.set_yticks(range(len(records)), names, fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.04, y=0.02)
    axes.set_xlim(left=min(1, 0.9 * min(patch.get_width() for patch in axes.patches)))
    axes.xaxis.set_major_locator(
        importlib.import_module("matplotlib.ticker").LogLocator(subs=(1, 3))
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(
        "time of forward + backward in multiples of a copy of the embedding, logarithmic"
        " (shorter is faster)",
        fontsize=8,
    )
    axes.set_facecolor(GROUND)
    axes.grid(axis="x", color=LINES, linewidth=0.7, zorder=0)
    axes.tick_params(which="both", length=0, labelsize=7.5)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=len(BARS), frameon=False, fontsize=8,
        handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    axes.figure.suptitle(
        f"{where}, torch {machine['torch']}, {machine['date'][:10]}", fontsize=8, x=0.99, ha="right"
    )


def _about(record: Record) -> str:
    """What the workload is, in a few words; the dtype where it is not the usual one."""
    dtype = "" if record["dtype"] == "float32" else f", {record['dtype']}"
    return str(record["about"]).partition(":")[0] + dtype
