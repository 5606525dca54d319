"""One workload: every implementation checked, the right ones timed, their memory measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from discloss_cuda import _ops

from . import exact, memory, nothing
from .baselines import Implementation, implementations
from .report import Record
from .timing import PHASES, Key, Series, Subject, Work, both, in_rounds, phases, replay, sampler
from .workloads import WORKLOADS, Problem, Workload, build

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
OURS = "discloss_cuda"
ROOM = 0.9  # of the free memory: an estimate may use so much
NEAR = 1.25  # times the best of a first look: may be the best of a longer one

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    device: str
    threads: int
    rounds: int
    seconds: float  # the least length of a turn
    limit: float  # when a workload has had enough rounds
    quick: bool = False
    compiled: bool = True  # the torch.compile baselines too
    all: bool = False  # all formulations at length, not the fastest of each group
    only_ours: bool = False  # neither the reference nor any baseline


@dataclass(eq=False)
class Contender:
    """An implementation on its way through check, timing and memory; `row` is what is reported."""

    implementation: Implementation
    problem: Problem
    row: Record = field(default_factory=dict)
    loss: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def subject(self) -> Subject:
        """The loss that passed the check, and its input."""
        assert self.loss is not None
        return Subject(self.loss, self.problem.embeddings)

    def check(self, expected: exact.Exact, device: str) -> None:
        """Runs it once and judges the result; only a right one is `ok`."""
        name, group = self.implementation.name, self.implementation.group
        self.row = {"name": name, "group": group, "status": "ok", "peak_bytes": None}
        needed = self.implementation.memory(self.problem)
        if needed > ROOM * memory.available(device):
            self.row["status"] = f"out of memory: would need about {needed / 1e9:.0f} GB"
            return
        try:
            loss, grad = self._first_run()
        except Exception as error:  # whatever a compiler raises; reported, and the status is not 0
            text = str(error)
            lacked = any(words in text for words in OUT_OF_MEMORY)
            first = f"{type(error).__name__}: {text.strip().partition(chr(10))[0]}"
            self.row["status"] = "out of memory" if lacked else f"FAILED: {first}"
            return
        errors = exact.compare(self.problem, expected, loss, grad)
        self.row |= {"loss_error": errors.loss, "grad_error": errors.grad}
        if not errors.right:
            self.row["status"] = "WRONG"

    def _first_run(self) -> tuple[torch.Tensor, torch.Tensor]:
        with warnings.catch_warnings():
            if self.implementation.group == "torch.compile":
                warnings.simplefilter("ignore")  # the compiler's, about itself
            self.loss = self.implementation.make(self.problem)
            loss = both(self.subject).detach()
        grad = self.problem.embeddings.grad
        assert grad is not None
        self.problem.embeddings.grad = None
        return loss, grad


def measure(
    workload: Workload, dtype: str, settings: Settings, progress: Progress = lambda _: None
) -> Record:
    """Everything about one workload in one dtype."""
    if settings.compiled:
        torch.compiler.reset()
    progress("making the input")
    problem = build(workload, DTYPES[dtype], settings.device)
    record = describe(workload, problem, dtype, settings.device)
    contenders = [
        Contender(implementation, problem)
        for implementation in implementations(quick=settings.quick)
        if settings.compiled or implementation.group != "torch.compile"
        if not settings.only_ours or implementation.group == OURS
    ]
    progress("computing in float64")
    expected = exact.compute(problem)
    for contender in contenders:
        progress(f"checking {contender.implementation.name}")
        contender.check(expected, settings.device)
    del expected
    right = [contender for contender in contenders if contender.row["status"] == "ok"]
    timed = right if settings.all else _fastest(right, settings, progress)
    for contender in contenders:
        contender.row["shown"] = contender in timed or contender not in right
    _time(record, timed, problem, settings, progress)
    for contender in timed:
        progress(f"memory of {contender.implementation.name}")
        contender.row["peak_bytes"] = _peak(workload, dtype, contender, settings)
    record["speedups"] = speedups([contender.row for contender in timed])
    record["rows"] = [contender.row for contender in contenders]
    return record


def speedups(rows: list[Record]) -> dict[str, float]:
    """How many times faster this package is than the fastest of every other group."""
    times: dict[str, float] = {}
    for row in rows:
        median = row["both"]["median_ms"]
        times[row["group"]] = min(median, times.get(row["group"], median))
    ours = times.pop(OURS, None)
    return {} if ours is None else {group: time / ours for group, time in times.items()}


def peak_bound(problem: Problem) -> int:
    """The most bytes a call should need: the gradient, 4 a pixel, 16 B K (D + 4)."""
    x = problem.embeddings
    tables = 16 * problem.images * problem.instances * (x.shape[1] + 4)
    return x.numel() * x.element_size() + 4 * problem.labels.numel() + tables


def describe(workload: Workload, problem: Problem, dtype: str, device: str) -> Record:
    """The input, in words and numbers; `useful_bytes` is the least traffic of a loss with gradient.

    That is: embeddings and ids read once, the gradient written once.
    """
    x, labels = problem.embeddings, problem.labels
    return {
        "workload": workload.name,
        "about": workload.about,
        "device": device,
        "dtype": dtype,
        "shape": list(x.shape),
        "images": problem.images,
        "instances": problem.instances,
        "label_dtype": str(labels.dtype).removeprefix("torch."),
        "ignore_label": problem.ignore_label,
        "embedding_bytes": x.numel() * x.element_size(),
        "bound_bytes": peak_bound(problem),
        "useful_bytes": 2 * x.numel() * x.element_size() + labels.numel() * labels.element_size(),
    }


def _fastest(
    contenders: list[Contender], settings: Settings, progress: Progress
) -> list[Contender]:
    """The fastest of each group by a short look at all of them, and those that come near it."""
    groups: dict[str, list[Contender]] = {}
    for contender in contenders:
        groups.setdefault(contender.implementation.group, []).append(contender)
    chosen: list[Contender] = []
    for rivals in groups.values():
        if len(rivals) > 1:
            for contender in rivals:
                progress(f"a first look at {contender.implementation.name}")
                work = phases(contender.subject)["both"]
                series = sampler(work, settings.device, settings.threads).sample(settings.seconds)
                contender.row["first_look_ms"] = float(np.median(series.times) * 1e3)
            best = min(contender.row["first_look_ms"] for contender in rivals)
            rivals = [c for c in rivals if c.row["first_look_ms"] <= NEAR * best]
        chosen += rivals
    return chosen


def _time(
    record: Record,
    contenders: list[Contender],
    problem: Problem,
    settings: Settings,
    progress: Progress,
) -> None:
    """All phases of all contenders, and the copies they are measured in, in the same rounds."""
    source = problem.embeddings.detach()
    ready = torch.empty_like(source)
    work: dict[Key, Work] = {("copy_", "both"): Work(lambda _: ready.copy_(source))}
    if settings.device == "cpu":
        work["clone", "both"] = Work(lambda _: source.clone())
    for contender in contenders:
        for phase, step in phases(contender.subject).items():
            work[contender.implementation.name, phase] = step
    if settings.device == "cuda":
        work |= _on_cuda_alone(record, contenders, progress)
    samplers = {key: sampler(w, settings.device, settings.threads) for key, w in work.items()}
    times = in_rounds(samplers, settings.rounds, settings.seconds, settings.limit, progress)

    for unit in ("copy_", "clone"):
        if (unit, "both") in times:
            record[unit] = _summary(times[unit, "both"], 2 * record["embedding_bytes"])
    for contender in contenders:
        for phase in PHASES:
            series = times[contender.implementation.name, phase]
            summary = _summary(series, record["useful_bytes"] if phase == "both" else None)
            summary["copies"] = summary["median_ms"] / record["copy_"]["median_ms"]
            if "clone" in record:
                summary["clones"] = summary["median_ms"] / record["clone"]["median_ms"]
            contender.row[phase] = summary
    if settings.device == "cuda":
        _summarize_cuda(record, contenders, times)


NOTHING: Key = ("a call that does nothing", "both")


def _on_cuda_alone(
    record: Record, contenders: list[Contender], progress: Progress
) -> dict[Key, Work]:
    """A call that does nothing, and the replay of whatever can be captured in a CUDA graph."""
    work: dict[Key, Work] = {}
    for contender in contenders:
        name, subject = contender.implementation.name, contender.subject
        progress(f"capturing {name}")
        look = sampler(Work(lambda _, subject=subject: both(subject)), "cuda", 1).sample(0.0)
        if not look.queued:
            contender.row["graph_error"] = "waits for the device"
            continue
        try:
            work[name, "graph"] = replay(subject)
        except Exception as error:  # whatever the capture raises; reported
            contender.row["graph_error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
    ours = next((c for c in contenders if c.implementation.group == OURS), None)
    if ours is not None:
        progress("compiling a call that does nothing")
        try:
            ops = nothing.ops()
        except Exception as error:  # no compiler, say; reported
            record["nothing_error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
        else:
            subject = ours.subject
            work[NOTHING] = Work(lambda _: both(subject), around=partial(_ops.use, ops))
    return work


def _summarize_cuda(record: Record, contenders: list[Contender], times: dict[Key, Series]) -> None:
    """Replays in copies; host times in calls that do nothing."""
    if NOTHING in times:
        record["nothing"] = times[NOTHING].summary()
    for contender in contenders:
        row = contender.row
        if (series := times.get((contender.implementation.name, "graph"))) is not None:
            row["graph"] = series.summary()
            row["graph"]["copies"] = row["graph"]["median_ms"] / record["copy_"]["median_ms"]
        if "nothing" in record:
            row["both"]["host_ratio"] = row["both"]["host_ms"] / record["nothing"]["host_ms"]


def _summary(series: Series, traffic: int | None) -> dict[str, float]:
    summary = series.summary()
    if traffic is not None:
        summary["gb_per_s"] = traffic / summary["median_ms"] / 1e6
    return summary


def _peak(workload: Workload, dtype: str, contender: Contender, settings: Settings) -> int | None:
    if settings.device == "cuda":
        return memory.cuda_peak(contender.subject)
    make = partial(named_subject, workload.name, dtype, contender.implementation.name)
    return memory.cpu_peak(make, settings.threads)


def named_subject(workload: str, dtype: str, implementation: str) -> Subject:
    """Makes a subject from names, as another process has to."""
    chosen = next(w for w in WORKLOADS if w.name == workload)
    problem = build(chosen, DTYPES[dtype], "cpu")
    make = next(i.make for i in implementations(quick=False) if i.name == implementation)
    return Subject(make(problem), problem.embeddings)
