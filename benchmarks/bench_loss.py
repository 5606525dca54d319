"""Speed and memory of the discriminative loss, beside the best that PyTorch can do without it.

Every implementation is first held to a float64 computation, loss and gradient; one that is wrong
is reported as WRONG, is not timed, and makes the exit status 1. The right ones are timed, forward,
backward, and both, in units of a copy of the embedding in the same run: every embedding has to be
read and every gradient written, so one copy is the least that both can cost.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import aims, exact, figure, memory, report
from measuring.baselines import COMPILED, COMPILED_QUICK, FORMULATIONS
from measuring.measure import DTYPES, Settings, measure
from measuring.progress import ProgressLine
from measuring.workloads import WORKLOADS, Workload

AUTOMATIC = Path("DATE-machine.json")  # stands for the name that `report.default_file` gives


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 1 if any implementation was wrong."""
    options = _parse(arguments)
    if options.source:
        return _show(options)
    chosen = _choose(options.workload, options.device, options.quick)
    if options.list:
        for workload in chosen:
            print(f"{workload.name:16}{workload.about}")
        return 0
    torch.set_num_threads(options.threads)
    machine = report.environment(options.device, options.threads, options.commit)
    if options.json == AUTOMATIC:
        options.json = report.default_file(machine)
    settings = Settings(
        device=options.device,
        threads=options.threads,
        rounds=options.rounds,
        seconds=options.seconds,
        limit=options.limit,
        quick=options.quick,
        compiled=not options.no_compile,
        all=options.all,
        only_ours=options.only_ours,
    )
    print(_preamble(machine, options.quick), flush=True)
    progress = ProgressLine()
    records: list[report.Record] = []
    for workload in chosen:
        for dtype in options.dtypes:
            progress.start(f"{workload.name} {dtype}")
            records.append(measure(workload, dtype, settings, progress))
            progress.clear()
            print(report.table(records[-1]), flush=True)
            _write(options, machine, records)  # now: a run that is cut short leaves its results
    print(_conclusion(machine, records), end="", flush=True)
    rows = [row for record in records for row in record["rows"]]
    bad = [row for row in rows if row["status"].startswith(("WRONG", "FAILED"))]
    if bad:
        print(f"wrong or failed: {len(bad)} of {len(rows)}", file=sys.stderr)
    return 1 if bad else 0


def _show(options: argparse.Namespace) -> int:
    """Prints, and writes as asked, what an earlier run measured."""
    machine, records = report.read_json(options.source)
    kept = [
        record
        for record in records
        if record["dtype"] in options.dtypes
        and any(fnmatch.fnmatchcase(record["workload"], p) for p in options.workload or ["*"])
    ]
    if not kept:
        names = ", ".join(f"{record['workload']} {record['dtype']}" for record in records)
        raise SystemExit(f"--workload, --dtype: expected one of {names} of {options.source}")
    print("\n".join(report.table(record) for record in kept))
    print(_conclusion(machine, kept), end="")
    _write(options, machine, kept)
    return 0


def _conclusion(machine: dict[str, Any], records: list[report.Record]) -> str:
    """What is met and missed, on CUDA behind a line for each workload."""
    summary = report.summary(records) + "\n" if machine["device"] == "cuda" else ""
    return summary + aims.verdicts(records)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=default, help=f"default here: {default}")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of all sides")
    add("--dtype", choices=DTYPES, help="only this dtype; default: both, with --quick float32")
    add("--quick", action="store_true", help="real label maps, fewer baselines and repeats")
    add("--workload", metavar="NAME", action="append", help="only this one; may hold *, and repeat")
    add("--list", action="store_true", help="name the workloads and stop")
    add("--no-compile", action="store_true", help="leave the torch.compile baselines out")
    add("--all", action="store_true", help="time all formulations at length, not the best of each")
    add("--only-ours", action="store_true", help="neither the reference nor any baseline")
    add("--rounds", type=int, help="turns of every implementation; default 7, with --quick 4")
    add("--seconds", type=float, help="least length of a turn; default 0.1, CUDA or --quick 0.04")
    add("--limit", type=float, help="seconds a workload is timed; default 120, with --quick 8")
    source = "measure nothing: show, or --plot, what a FILE of --json holds"
    add("--from", dest="source", metavar="FILE", type=Path, help=source)
    add("--commit", help="to be recorded where this is no git checkout")
    where = "write all numbers, with machine and versions"
    auto = "; without FILE: results/DATE-machine.json beside this program"
    add("--json", metavar="FILE", type=Path, nargs="?", const=AUTOMATIC, help=where + auto)
    add("--csv", metavar="FILE", type=Path, help=where)
    add("--plot", metavar="FILE", type=Path, help="draw the multiples of a copy (matplotlib)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not options.source and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    if options.source and not options.source.is_file():
        parser.error(f"--from: expected a file that --json has written, got {options.source}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    short = options.quick or options.device == "cuda"
    options.rounds = options.rounds or (4 if options.quick else 7)
    options.seconds = options.seconds or (0.04 if short else 0.1)
    options.limit = options.limit or (8 if options.quick else 120)
    chosen = ["float32"] if options.quick else list(DTYPES)
    options.dtypes = [options.dtype] if options.dtype else chosen
    return options


def _choose(patterns: list[str] | None, device: str, quick: bool) -> list[Workload]:
    here = [workload for workload in WORKLOADS if device in workload.devices]
    if not patterns:
        return [w for w in here if not w.hidden and (w.quick or not quick)]
    found = [w for w in here if any(fnmatch.fnmatchcase(w.name, p) for p in patterns)]
    if not found:
        names = ", ".join(workload.name for workload in here)
        raise SystemExit(f"--workload: expected one of {names}, got {', '.join(patterns)}")
    return found


def _preamble(machine: dict[str, Any], quick: bool) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [
        textwrap.fill(facts, report.TABLE_WIDTH),
        f"checked first: |loss - float64| <= {exact.LOSS_TOLERANCE:g} |loss|, |gradient - float64| "
        f"<= {exact.GRAD_TOLERANCE:g} of the image's largest (bfloat16: + 2^-8)",
        f"eager, compile: the fastest of {len(FORMULATIONS)} formulations in plain PyTorch, and of "
        f"{len(COMPILED_QUICK if quick else COMPILED)} under torch.compile;",
        "  they are given consecutive ids for free, the others start from the ids as they come",
        "x copy_: multiples of a copy_ of the embedding into a ready buffer in this run; "
        "useful: embedding and ids read once, gradient written once",
        f"peak: beside the inputs, gradient included; {memory.HOW[machine['device']]}",
    ]
    if machine["device"] == "cuda":
        lines += [
            "times are the device's, launches queued behind a busy kernel, L2 flushed (*: the call "
            "waits for the device, launches included); graph: replay of a CUDA graph of both",
            "host: until the call returns; no-op: the same call of ops that launch nothing; "
            "bound: gradient + 4 bytes a pixel + 16 B K (D + 4)",
        ]
    if machine["load"] > machine["cpus"] / 2:
        lines.append("WARNING: the machine is busy with something else: do not trust these times")
    return "\n".join([*lines, ""])


def _write(
    options: argparse.Namespace, machine: dict[str, Any], records: list[report.Record]
) -> None:
    """Writes the files asked for, whole."""
    if options.json:
        report.write_json(options.json, machine, records)
    if options.csv:
        report.write_csv(options.csv, machine, records)
    if options.plot:
        figure.write_plot(options.plot, machine, records)


if __name__ == "__main__":
    sys.exit(main())
