"""Time and quality of `cluster_embeddings`, beside what is called for the same today.

Each implementation runs in a process of its own, where it takes turns with ours and with a copy of
the embedding. A time means little without the quality of its result, so AP, SBD, |DiC|, ARI and the
number of instances stand beside it, against the true instances. The foreground is the true one.

The rivals come with `pip install .[rivals]`; what is missing is named in the table.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import clustering_report, report
from measuring.clustering_measure import CLOCKS, LONG, Record, Settings, measure
from measuring.clustering_workloads import WORKLOADS, Workload
from measuring.progress import ProgressLine

THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "PARLAY_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 1 if anything failed."""
    options = _parse(arguments)
    chosen = _choose(options.workload, options.quick)
    if options.list:
        for workload in chosen:
            print(f"{workload.name:16}{workload.about}")
        return 0
    os.environ |= dict.fromkeys(THREADS, str(options.threads))  # of the processes to come
    torch.set_num_threads(options.threads)
    machine = report.environment("cpu", options.threads, options.commit)
    machine["clock"] = options.clock
    settings = Settings(
        threads=options.threads,
        calls=options.calls,
        seconds=options.seconds,
        give_up=options.give_up,
        clock=options.clock,
        only=tuple(options.only),
        processes=not options.in_process,
    )
    print(_preamble(machine, options.give_up), flush=True)
    progress = ProgressLine()
    records: list[Record] = []
    for workload in chosen:
        progress.start(workload.name)
        records.append(measure(workload, settings, progress))
        progress.clear()
        print(clustering_report.table(records[-1]), flush=True)
        if options.json:  # now: a run that is cut short leaves its results
            report.write_json(options.json, machine, records)
    if options.plot:
        clustering_report.write_plot(options.plot, machine, records)
    print(clustering_report.verdicts(records), end="", flush=True)
    failed = [row for record in records for row in record["rows"] if "FAILED" in row["status"]]
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=1, help="of all sides that can be told; default 1")
    add("--quick", action="store_true", help="real embeddings and a small image, fewer calls")
    add("--workload", metavar="NAME", action="append", help="only this one; may hold *, and repeat")
    add("--list", action="store_true", help="name the workloads and stop")
    clock = "wall, or the CPU time of the process: for one thread on a machine that others use"
    add("--clock", choices=CLOCKS, default="wall", help=clock)
    only = "only these implementations; a name may hold *"
    add("--only", metavar="NAME", nargs="+", default=["*"], help=only)
    add("--calls", type=int, help="of each, at most; default 15, with --quick 5")
    add("--seconds", type=float, help="after which none is repeated; default 20, with --quick 3")
    add("--give-up", type=float, help="seconds for an implementation; default 900, --quick 60")
    add("--in-process", action="store_true", help="no process for each: memory is not comparable")
    add("--commit", help="to be recorded where this is no git checkout")
    add("--json", metavar="FILE", type=Path, help="write all numbers, with machine and versions")
    add("--plot", metavar="FILE", type=Path, help="draw quality over time (matplotlib)")
    options = parser.parse_args(arguments)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    options.calls = options.calls or (5 if options.quick else 15)
    options.seconds = options.seconds or (3 if options.quick else 20)
    options.give_up = options.give_up or (60 if options.quick else 900)
    return options


def _choose(patterns: list[str] | None, quick: bool) -> list[Workload]:
    if not patterns:
        return [w for w in WORKLOADS if not w.hidden and (w.quick or not quick)]
    found = [w for w in WORKLOADS if any(fnmatch.fnmatchcase(w.name, p) for p in patterns)]
    if not found:
        names = ", ".join(workload.name for workload in WORKLOADS)
        raise SystemExit(f"--workload: expected one of {names}, got {', '.join(patterns)}")
    return found


def _preamble(machine: Record, give_up: float) -> str:
    lines = [
        ", ".join(f"{key} {value}" for key, value in machine.items()),
        "copies: multiples of a warm copy_ of the embedding; x ours: of "
        f"{clustering_report.OURS}; both beside it in the same process",
        f"over {LONG:.0f} s: called once; over --seconds: timed once, warm; a process that is not "
        f"through in {give_up:.0f} s: stopped",
        "AP: TP / (TP + FP + FN), mean over IoU 0.5 to 0.95; all scores are means over the images",
    ]
    if machine["load"] > machine["cpus"] / 2:
        lines.append("WARNING: the machine is busy with something else: do not trust these times")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
