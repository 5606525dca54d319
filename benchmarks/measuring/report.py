"""What comes out: a table of plain text, CSV and JSON."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import discloss_cuda

from .timing import PHASES

RESULTS = Path(__file__).parents[1] / "results"

Record = dict[str, Any]  # one workload and dtype; its "rows" are one an implementation

NAME_WIDTH, TABLE_WIDTH = 22, 140

Column = tuple[str, str, int]  # group, title, width


def _text(command: list[str]) -> str:
    """What a command prints, or nothing where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str:
    commit = _text(["git", "rev-parse", "--short=12", "HEAD"])
    changed = commit and _text(["git", "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}, modified" if changed else commit or "unknown"


def environment(device: str, threads: int, commit: str | None) -> dict[str, Any]:
    """Everything a number depends on that is not in the table."""
    facts: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit or _commit(),
        "discloss_cuda": discloss_cuda.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),  # before the benchmark adds its own
        "threads": threads,
        "device": device,
    }
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
            "driver": _text(query).partition("\n")[0] or "unknown",
            "cuda": torch.version.cuda,
        }
        try:
            facts["triton"] = importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            facts["triton"] = "missing"
    return facts


def default_file(machine: dict[str, Any]) -> Path:
    """`results/DATE-machine.json` for the GPU or CPU measured; numbered if it is there already."""
    name = re.sub(r"[^a-z0-9]+", "-", str(machine.get("gpu") or machine["cpu"]).lower()).strip("-")
    stem = f"{machine['date'][:10]}-{name}"
    files = (RESULTS / f"{stem}{suffix}.json" for suffix in ("", *(f"-{i}" for i in range(2, 100))))
    return next(file for file in files if not file.exists())


def _columns(cuda: bool) -> list[Column]:
    """The table's columns; their values are those of `_values`."""
    if cuda:
        return [
            *(("milliseconds", title, width) for title, width in (("both", 8), ("graph", 8))),
            ("milliseconds", "20-80 %", 14),
            *(("x copy_", title, 9) for title in PHASES),
            ("x copy_", "graph", 8),
            ("host", "ms", 7),
            ("host", "x no-op", 8),
            ("peak", "MB", 8),
            ("peak", "x bound", 8),
            ("error", "loss", 7),
            ("error", "gradient", 9),
        ]
    return [
        *(("milliseconds", title, 9) for title in PHASES),
        ("milliseconds", "20-80 %", 15),
        *(("x copy_", title, 9) for title in PHASES),
        ("x clone", "both", 8),
        ("useful", "GB/s", 7),
        ("peak", "MB", 8),
        ("relative error", "loss", 8),
        ("relative error", "gradient", 9),
    ]


def _values(row: Record, record: Record) -> list[str]:
    both, peak = row["both"], row["peak_bytes"]
    spread = f"{number(both['q20_ms'])}-{number(both['q80_ms'])}"
    copies = [number(row[phase]["copies"]) for phase in PHASES]
    memory = "-" if peak is None else number(peak / 1e6)
    errors = [f"{row['loss_error']:.0e}", f"{row['grad_error']:.0e}"]
    if record["device"] == "cuda":
        graph = row.get("graph", {})
        return [
            number(both["median_ms"]),
            number(graph.get("median_ms")),
            spread,
            *copies,
            number(graph.get("copies")),
            number(both["host_ms"]),
            number(both.get("host_ratio")),
            memory,
            "-" if peak is None else number(peak / record["bound_bytes"]),
            *errors,
        ]
    return [
        *(number(row[phase]["median_ms"]) for phase in PHASES),
        spread,
        *copies,
        number(both["clones"]),
        number(both["gb_per_s"]),
        memory,
        *errors,
    ]


def number(value: float | None) -> str:
    """Three digits or so; a dash for what was not measured."""
    if value is None:
        return "-"
    digits = 3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:.{digits}f}"


def _line(name: str, columns: list[Column], values: list[str]) -> str:
    """One value a column, aligned, with a bar before each group."""
    line, before = f"{name[:NAME_WIDTH]:{NAME_WIDTH}}", ""
    for (group, _, width), value in zip(columns, values, strict=True):
        line += f"{'' if group == before else '|'}{value:>{width}}"
        before = group
    return line


def _head(columns: list[Column]) -> list[str]:
    """Two lines of titles: of the groups, and of the columns."""
    widths: dict[str, int] = {}
    for group, _, width in columns:
        widths[group] = widths.get(group, 0) + width
    groups = "|".join([" " * NAME_WIDTH, *(f"{name:^{width}}" for name, width in widths.items())])
    return [groups.rstrip(), _line("implementation", columns, [title for _, title, _ in columns])]


def _row(row: Record, columns: list[Column], record: Record) -> str:
    if row["status"] == "ok":
        mark = "" if row["both"].get("queued", True) else " *"
        return _line(row["name"] + mark, columns, _values(row, record))
    errors = [f"{key} {row[key]:.1e}" for key in ("loss_error", "grad_error") if key in row]
    return ", ".join([f"{row['name']:{NAME_WIDTH}}| {row['status']}", *errors])[:TABLE_WIDTH]


def title(record: Record) -> str:
    """One line that says what the input is."""
    ids = f"{record['label_dtype']} ids"
    if record["ignore_label"] is not None:
        ids += f", {record['ignore_label']} ignored"
    return (
        f"{record['workload']}: {record['about']}; {record['shape']} {record['dtype']}, "
        f"B {record['images']}, K {record['instances']}, {ids}"
    )


def table(record: Record) -> str:
    """The table of one workload."""
    cuda = record["device"] == "cuda"
    units = [
        f"copy_ {record['copy_']['median_ms']:.3f} ms ({record['copy_']['gb_per_s']:.0f} GB/s)"
    ]
    if "clone" in record:
        units.append(f"clone {record['clone']['median_ms']:.3f} ms")
    if "nothing" in record:
        units.append(f"host of a call that does nothing {record['nothing']['host_ms']:.3f} ms")
    columns = _columns(cuda)
    rows = [_row(row, columns, record) for row in record["rows"] if row["shown"]]
    return "\n".join([title(record), "  " + ", ".join(units), *_head(columns), *rows, ""])


SUMMARY = (  # title, width, value
    ("copies", 9, lambda record, row: row["both"]["copies"]),
    ("graph", 9, lambda record, row: row.get("graph", {}).get("copies")),
    ("x reference", 13, lambda record, row: record["speedups"].get("reference")),
    ("x eager", 9, lambda record, row: record["speedups"].get("eager")),
    ("x compile", 11, lambda record, row: record["speedups"].get("torch.compile")),
    ("host x no-op", 14, lambda record, row: row["both"].get("host_ratio")),
    ("peak x bound", 14, lambda record, row: row["peak_bytes"] / record["bound_bytes"]),
)


def summary(records: list[Record]) -> str:
    """One line a workload: this package in copies, beside the others, and against its bounds."""
    lines = ["".join([f"{'':28}", *(f"{title:>{width}}" for title, width, _ in SUMMARY)])]
    for record in records:
        row = record["rows"][0]
        name = f"{record['workload']} {record['dtype']}"
        if "both" in row:
            values = (f"{number(value(record, row)):>{width}}" for _, width, value in SUMMARY)
            lines.append("".join([f"{name:28}", *values]))
        else:
            lines.append(f"{name:28}{row['status']}"[:TABLE_WIDTH])
    return "\n".join([*lines, ""])


def flat_rows(record: Record) -> Iterator[dict[str, Any]]:
    """One flat dictionary an implementation: what CSV holds."""
    shared = {key: value for key, value in record.items() if not isinstance(value, list | dict)}
    shared["copy_ms"] = record["copy_"]["median_ms"]
    shared["clone_ms"] = record.get("clone", {}).get("median_ms")
    for row in record["rows"]:
        flat = dict(shared)
        for key, value in row.items():
            if isinstance(value, dict):
                flat |= {f"{key}_{part}": number for part, number in value.items()}
            else:
                flat[key] = value
        yield flat


def write_json(path: Path, machine: dict[str, Any], records: list[Record]) -> None:
    """Everything, to be read by machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "results": records}, indent=1, allow_nan=True)
    path.write_text(text + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """The machine and the records that `write_json` wrote."""
    found = json.loads(path.read_text())
    return found["machine"], found["results"]


def write_csv(path: Path, machine: dict[str, Any], records: list[Record]) -> None:
    """One line an implementation; the machine's facts are columns too."""
    rows = [machine | row for record in records for row in flat_rows(record)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue())
