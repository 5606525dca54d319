"""One workload: every implementation timed in a process of its own, its result judged.

In that process it takes turns with ours and with a copy of the embedding, so that what else the
machine does hits all three alike. A process also gives a peak of memory, and can be stopped.
"""

from __future__ import annotations

import fnmatch
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch

from discloss_cuda.metrics import instance_scores

from . import memory
from .clustering_rivals import Implementation, implementations
from .clustering_workloads import WORKLOADS, Problem, Workload

Record = dict[str, Any]
Progress = Callable[[str], None]
Result = TypeVar("Result")

LONG = 60.0  # seconds: what takes longer is called once, with nothing to warm it up
FEWEST = 3  # calls of what is quick

# The time of the process leaves out what others do to a busy machine; it adds up over threads.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    threads: int
    calls: int  # of an implementation, at most
    seconds: float  # after which it is not called again
    give_up: float  # seconds after which its process is stopped
    clock: str = "wall"  # a key of CLOCKS
    only: tuple[str, ...] = ("*",)  # patterns of names
    processes: bool = True  # else everything happens in this one; for tests


def measure(workload: Workload, settings: Settings, progress: Progress = lambda _: None) -> Record:
    """The rows of all implementations on one workload."""
    problem = workload.make()
    record: Record = {
        "workload": workload.name,
        "about": workload.about,
        "shape": list(problem.embeddings.shape),
        "instances": problem.instances(),
        "foreground": int(problem.foreground.sum()),
        "embedding_bytes": 4 * problem.embeddings.numel(),
        "rows": [],
    }
    for implementation in implementations():
        if not any(fnmatch.fnmatchcase(implementation.name, only) for only in settings.only):
            continue
        progress(implementation.name)
        row: Record = {"name": implementation.name, "status": "ok"}
        if implementation.missing():
            row["status"] = f"missing: pip install {implementation.package}"
        elif why := implementation.unsuited(problem):
            row["status"] = f"unsuited: {why}"
        elif settings.processes:
            row |= _in_a_process((workload.name, implementation.name, settings), settings.give_up)
        else:
            row |= look(workload.name, implementation.name, settings)
        record["rows"].append(row)
    return record


def look(workload: str, name: str, settings: Settings) -> Record:
    """Times, memory and scores of one implementation, by names as another process needs them."""
    torch.set_num_threads(settings.threads)
    problem = next(w for w in WORKLOADS if w.name == workload).make()
    everyone = implementations()
    try:
        return _look(problem, next(i for i in everyone if i.name == name), everyone[0], settings)
    except Exception as error:  # whatever a library raises; reported
        return {"status": f"FAILED: {type(error).__name__}: {error}".partition("\n")[0]}


def _look(
    problem: Problem, implementation: Implementation, ours: Implementation, settings: Settings
) -> Record:
    memory.hand_back_freed_blocks()
    run, our_run = implementation.make(problem), ours.make(problem)
    ready = torch.empty_like(problem.embeddings)

    def timed(call: Callable[[], Result]) -> tuple[float, Result]:
        began = CLOCKS[settings.clock]()
        result = call()
        return CLOCKS[settings.clock]() - began, result

    first, (ids, peak) = timed(lambda: memory.peak_of(run))
    if first <= LONG:  # that call has compiled, imported, started threads
        first, (ids, peak) = timed(lambda: memory.peak_of(run))
    quick = first <= settings.seconds
    our_run()
    times: dict[str, list[float]] = {"own": [] if quick else [first], "ours": [], "copy": []}
    began = time.perf_counter()
    while True:
        if quick:
            times["own"].append(timed(run)[0])
        times["ours"].append(timed(our_run)[0])
        for _ in range(2):  # the first only warms up
            copied, _ = timed(lambda: ready.copy_(problem.embeddings))
        times["copy"].append(copied)
        calls, elapsed = len(times["ours"]), time.perf_counter() - began
        if calls >= settings.calls or (calls >= FEWEST and elapsed > settings.seconds):
            break
    own, beside, copy = (np.quantile(times[key], (0.2, 0.5, 0.8)) for key in times)
    return {
        "q20_ms": own[0] * 1e3,
        "median_ms": own[1] * 1e3,
        "q80_ms": own[2] * 1e3,
        "calls": len(times["own"]),
        "once": not quick,
        "ours_beside_ms": beside[1] * 1e3,
        "copy_ms": copy[1] * 1e3,
        "copies": own[1] / copy[1],
        "times_ours": own[1] / beside[1],
        "peak_bytes": peak,
        **scores(ids, problem),
    }


def scores(ids: torch.Tensor, problem: Problem) -> Record:
    """Means over the images of a problem; `found` is the mean number of instances."""
    found = instance_scores(ids, problem.labels, problem.offsets)
    means = {name: float(getattr(found, name).double().mean()) for name in SCORES}
    return means | {"found": float(found.predicted.double().mean())}


SCORES = ("ap", "sbd", "dic", "ari")


def _in_a_process(arguments: tuple[str, str, Settings], give_up: float) -> Record:
    """What `look` returns, or a status that says why there is nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "measuring.clustering_rivals"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, *arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(give_up):
            row: Record = receiver.recv()
            return row
        return {"status": f"stopped after {give_up:.0f} s"}
    except EOFError:
        process.join()
        return {"status": f"FAILED: its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(sender: Connection, workload: str, name: str, settings: Settings) -> None:
    sender.send(look(workload, name, settings))
