"""What the clustering benchmark prints and draws."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .figure import GROUND, INK, LINES
from .report import number

Record = dict[str, Any]

NAME_WIDTH = 26
COLUMNS = (  # title, width, value of a row
    ("ms", 9, lambda row: number(row["median_ms"])),
    ("20-80 %", 16, lambda row: f"{number(row['q20_ms'])}-{number(row['q80_ms'])}"),
    ("copies", 9, lambda row: number(row["copies"])),
    ("x ours", 9, lambda row: number(row["times_ours"])),
    ("AP", 8, lambda row: f"{row['ap']:.3f}"),
    ("SBD", 7, lambda row: f"{row['sbd']:.3f}"),
    ("|DiC|", 7, lambda row: f"{row['dic']:.1f}"),
    ("ARI", 7, lambda row: f"{row['ari']:.3f}"),
    ("K found", 9, lambda row: f"{row['found']:.1f}"),
    ("peak MB", 9, lambda row: number(row["peak_bytes"] and row["peak_bytes"] / 1e6)),
)


def table(record: Record) -> str:
    """The rows of one workload, each with its quality beside its time."""
    numbers = sorted(set(record["instances"]))
    true = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    lines = [
        f"{record['workload']}: {record['about']}; K {true}, {record['foreground']} foreground "
        f"pixels, {record['embedding_bytes'] / 1e6:.1f} MB",
        " " * NAME_WIDTH + "".join(f"{title:>{width}}" for title, width, _ in COLUMNS),
        *(_line(row) for row in record["rows"]),
    ]
    return "\n".join([*lines, ""])


def _line(row: Record) -> str:
    if row["status"] != "ok":
        return f"{row['name']:{NAME_WIDTH}} {row['status']}"
    mark = "  timed once" if row["once"] else ""
    values = "".join(f"{value(row):>{width}}" for _, width, value in COLUMNS)
    return f"{row['name']:{NAME_WIDTH}}{values}{mark}"


# A workload's row of that name, what is looked at, and its bound; one thread, fragment 20.
OURS = "discloss_cuda fragment 20"
AIMS = (
    *(
        (workload, OURS, "copies", "at most", bound)
        for workload, bound in (
            ("clean-k30", 1.4),
            ("k30", 3.0),
            ("k125", 3.0),
            ("k1000", 7.0),
            ("full-k125", 6.0),
            ("volume", 3.5),
            ("untrained", 5.0),
            ("collapsed", 1.5),
        )
    ),
    ("small", "dense PyTorch", "times_ours", "at least", 10.0),
    *(
        ("k30", rival, "times_ours", "at least", bound)
        for rival, bound in (
            ("sklearn MeanShift 1.5", 1000.0),
            ("hdbscan 20, epsilon 0.5", 1000.0),
            ("dbscan (Wang) 0.5", 300.0),
            ("authors' loop 1.5", 80.0),
            ("faiss k-means, K given", 12.0),
        )
    ),
    ("crops", OURS, "ap", "at least", 0.69),
    ("bars", OURS, "ap", "at least", 0.38),
)
WORDS = {"copies": "copies", "times_ours": "times ours", "ap": "AP"}


def verdicts(records: list[Record]) -> str:
    """One line for each aim that the run says something about."""
    rows = {(record["workload"], row["name"]): row for record in records for row in record["rows"]}
    lines = []
    for workload, name, key, relation, bound in AIMS:
        row = rows.get((workload, name))
        if row is not None and key in row:
            met = row[key] <= bound if relation == "at most" else row[key] >= bound
            what = f"{number(row[key])} {WORDS[key]} ({relation} {bound:g})"
            lines.append(f"{workload:11}{name:{NAME_WIDTH}} {what}: {'met' if met else 'MISSED'}")
    return "\n".join(["aims:", *lines, ""]) if lines else ""


def write_plot(path: Path, machine: Record, records: list[Record]) -> None:
    """Quality over time, a panel a workload, a mark an implementation; up and left is better."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    columns = 2 if len(records) in (2, 4) else min(len(records), 3)
    lines = -(-len(records) // columns)
    names = list(dict.fromkeys(row["name"] for record in records for row in record["rows"]))
    colours = dict(zip(names, pyplot.colormaps["tab20"].colors, strict=False))
    size = (3.6 * columns, 1.4 + 2.6 * lines)
    with pyplot.rc_context({"font.size": 8, "text.color": INK, "axes.labelcolor": INK}):
        figure, panels = pyplot.subplots(
            lines, columns, figsize=size, layout="constrained", facecolor=GROUND, squeeze=False
        )
        for axes in panels.flat[len(records) :]:
            axes.set_axis_off()
        for axes, record in zip(panels.flat, records, strict=False):
            _draw_panel(axes, record, colours)
        handles = [
            pyplot.Line2D([], [], color=colours[name], marker=_mark(name), linestyle="", label=name)
            for name in names
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns + 1, fontsize=7)
        figure.suptitle(
            f"{machine['cpu']}, {machine['threads']} thread(s), {machine['clock']} time", fontsize=9
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        pyplot.close(figure)


def _draw_panel(axes: Any, record: Record, colours: dict[str, Any]) -> None:
    for row in record["rows"]:
        if row["status"] == "ok":
            style = {"color": colours[row["name"]], "marker": _mark(row["name"]), "zorder": 2}
            axes.scatter(row["median_ms"], row["ap"], s=40, **style)
    axes.set(title=record["workload"], xscale="log", xlabel="ms", ylabel="AP")
    axes.set(xlim=(1, 1e6), ylim=(-0.05, 1.05))
    axes.grid(color=LINES)


def _mark(name: str) -> str:
    return "o" if name.startswith("discloss_cuda") else "s"
