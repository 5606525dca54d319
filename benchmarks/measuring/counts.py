"""What the compiled kernels execute for a workload: counts, not times.

Exact, from the interpreter of tests/ptx: executions of PTX instructions by warps, sectors of global
memory, wavefronts of shared memory, launches. Exact, from ptxas: registers. Estimated: machine
instructions (SASS), those of each source line times the mean executions of the PTX instructions of
that line, which is good to 10 or 15 %.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import ptx
from support.cases import clustered_embeddings, voronoi_labels
from support.cuda_report import kernel_names, name_of

from discloss_cuda import _ops, discriminative_loss

from .sass import MachineKernel, machine_code

CAPABILITY = 9
TILE = 512  # pixels to which all counts refer
MULTIPROCESSORS, RESIDENT_BLOCKS = 4, 12

Line = tuple[str, int]  # file and number


@dataclass(frozen=True)
class KernelCounts:
    """Of a kernel, per 512 pixels unless it says otherwise."""

    kernel: str  # "sum_pixels_kernel<float>"
    ptx: float  # executions by warps
    kinds: dict[str, float]  # of them, by kind
    sectors: float  # of 32 bytes
    least_sectors: float
    wavefronts: float
    least_wavefronts: float
    registers: int  # of a thread
    warps_resident: int  # of a multiprocessor, as registers and shared memory allow
    bytes_in_flight: int  # of a multiprocessor: loads before the first use of a result
    sass: float  # estimated

    def to_json(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: round(each, 2) for key, each in value.items()}
    return round(value, 2) if isinstance(value, float) else value


@dataclass(frozen=True)
class CountedWorkload:
    """One image ``[1, D, H, W]``, a part of a larger one.

    So the runs of an id are as long as there.
    """

    name: str
    dtype: torch.dtype
    about: str
    channels: int = 16
    random: bool = False
    shape: tuple[int, int] = field(default=(128, 512))

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    def build(self) -> tuple[Tensor, Tensor]:
        """Embeddings and labels."""
        if self.random:
            generator = torch.Generator().manual_seed(0)
            labels = torch.randint(0, 32, (1, *self.shape), generator=generator)
        else:
            height, width = self.shape
            labels = voronoi_labels((8 * height, width), 64, seed=0)[:height][None]
        return clustered_embeddings(labels, self.channels, dtype=self.dtype), labels


WORKLOADS = {
    each.name: each
    for each in (
        CountedWorkload("voronoi-float32", torch.float32, "coherent ids, D = 16"),
        CountedWorkload("voronoi-bfloat16", torch.bfloat16, "the same in bfloat16"),
        CountedWorkload("random-float32", torch.float32, "ids at random, D = 16", random=True),
    )
}


def execute(workload: CountedWorkload) -> tuple[list[ptx.Instruction], list[ptx.Launched]]:
    """Forward and backward on the compiled kernels, one launch a phase."""
    x, labels = workload.build()
    x.requires_grad_()
    device = ptx.device()
    device.configure(
        compute_capability=CAPABILITY,
        multiprocessors=MULTIPROCESSORS,
        resident_blocks=RESIDENT_BLOCKS,
    )
    with _ops.use(ptx.ops()), device.recorded_memory(), device.counted_accesses():
        torch.autograd.grad(discriminative_loss(x, labels, max_instances=64), x)
    return device.executed(CAPABILITY), device.launched(CAPABILITY)


def count(workload: CountedWorkload) -> list[KernelCounts]:
    """Of every kernel that the workload launches, in the order of what they execute."""
    executed, launched = execute(workload)
    tiles = workload.pixels / TILE
    files = [each.ptx[ptx.ARCHITECTURES[CAPABILITY]] for each in ptx.device().compiled]
    machine = machine_code(files, ptx.ARCHITECTURES[CAPABILITY])
    lines = {path: _source_lines(path) for path in files}
    counts = []
    for each in launched:
        instructions = [i for i in executed if i.kernel == each.kernel and i.line > 0]
        kernel = machine[each.kernel]
        counts.append(_counts(each, instructions, kernel, lines[kernel.ptx], tiles))
    return sorted(counts, key=lambda found: -found.ptx)


def _counts(
    launched: ptx.Launched,
    executed: Sequence[ptx.Instruction],
    machine: MachineKernel,
    lines: Sequence[Line | None],
    tiles: float,
) -> KernelCounts:
    def total(name: str) -> float:
        return float(sum(getattr(i, name) for i in executed)) / tiles

    kinds: Counter[str] = Counter()
    for i in executed:
        kinds[kind_of(i.name)] += i.warps
    warps = machine.warps_resident(launched.threads, launched.shared_bytes)
    return KernelCounts(
        kernel=short_name(launched.kernel),
        ptx=total("warps"),
        kinds={kind: number / tiles for kind, number in kinds.most_common()},
        sectors=total("sectors"),
        least_sectors=total("least_sectors"),
        wavefronts=total("wavefronts"),
        least_wavefronts=total("least_wavefronts"),
        registers=machine.registers,
        warps_resident=warps,
        bytes_in_flight=32 * warps * machine.bytes_in_flight(),
        sass=_weighted(machine, executed, lines) / tiles,
    )


def kind_of(name: str) -> str:
    """Of a PTX instruction."""
    verb, *rest = name.split(".")
    if verb in ("ld", "st", "atom", "red"):
        space = next((part for part in rest if part in ("global", "shared", "param")), "generic")
        return f"{verb}.{space}"
    if verb in ("bar", "barrier", "shfl", "vote", "match"):
        return "barriers and exchanges"
    if verb in ("bra", "ret", "exit", "setp", "selp"):
        return "control"
    if verb in ("mov", "cvt", "cvta"):
        return "moves and conversions"
    if name.endswith(("f32", "f64")):
        return name[-3:]
    return "integers"


def _weighted(
    machine: MachineKernel, executed: Iterable[ptx.Instruction], lines: Sequence[Line | None]
) -> float:
    """Machine instructions, each as often as the PTX of its source line on average."""
    of_line: defaultdict[Line | None, list[int]] = defaultdict(list)
    for i in executed:
        of_line[lines[i.line]].append(i.warps)
    return sum(
        sum(of_line[i.source]) / len(of_line[i.source])
        for i in machine.instructions
        if i.source in of_line
    )


def _source_lines(path: Path) -> list[Line | None]:
    """Of each line of a PTX file, counted from 1: the innermost source line it comes from."""
    text = path.read_text().splitlines()
    names = {}
    for line in text:
        if found := re.match(r'\s*\.file\s+(\d+)\s+"([^"]+)"', line):
            names[found[1]] = Path(found[2]).name
    current: Line | None = None
    result: list[Line | None] = [None]
    for line in text:
        if found := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            current = (names[found[1]], int(found[2]))
        elif ".entry" in line:
            current = None
        result.append(current)
    return result


def short_name(symbol: str) -> str:
    """The name that a symbol stands for: ``sum_pixels_kernel<float>``."""
    command = ["c++filt", symbol]
    full = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    name = name_of(symbol, kernel_names())
    arguments = re.search(rf"{name}(<[^()]*?>)?\(", full)
    return name + (arguments[1] if arguments and arguments[1] else "")
