"""Machine code of the kernels: what ptxas makes of the PTX that the interpreter executes."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from support.cuda_report import parse_report
from support.nvcc import require_toolkit

# Of a multiprocessor of compute capability 9 (CUDA programming guide, "Compute Capabilities").
REGISTERS, REGISTER_UNIT, MOST_WARPS = 65536, 256, 64
SHARED_BYTES, RESERVED_SHARED_BYTES = 228 * 1024, 1024


@dataclass(frozen=True)
class MachineInstruction:
    """``LDG.E.128``, ``R4, desc[UR8][R2.64]``, and the innermost source line."""

    name: str
    operands: str
    source: tuple[str, int] | None


@dataclass(frozen=True)
class MachineKernel:
    """A kernel of a cubin."""

    ptx: Path
    registers: int
    instructions: tuple[MachineInstruction, ...]

    def warps_resident(self, threads: int, shared_bytes: int) -> int:
        """Of a multiprocessor, in blocks of so many threads."""
        warps = -(-threads // 32)
        of_warp = -(-32 * self.registers // REGISTER_UNIT) * REGISTER_UNIT
        blocks = min(
            REGISTERS // of_warp // warps,
            SHARED_BYTES // (shared_bytes + RESERVED_SHARED_BYTES),
            MOST_WARPS // warps,
        )
        return blocks * warps

    def bytes_in_flight(self) -> int:
        """Of a thread: the most that loads from global memory ask for at once.

        In the order of the code, up to the first instruction that needs one of their results.
        """
        most, pending = 0, {}
        for each in self.instructions:
            registers = [int(number) for number in re.findall(r"\bR(\d+)", each.operands)]
            if each.name.startswith("LDG") and registers:
                width = bytes_of_load(each.name)
                for i in range(max(width // 4, 1)):
                    pending[registers[0] + i] = min(width, 4)
                most = max(most, sum(pending.values()))
            elif pending.keys() & set(registers) or each.name.startswith(("BAR", "EXIT")):
                pending = {}
        return most


def bytes_of_load(name: str) -> int:
    """Of a thread."""
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((sizes[part] for part in name.split(".") if part in sizes), 4)


def machine_code(files: Sequence[Path], architecture: int) -> dict[str, MachineKernel]:
    """Of every kernel of some PTX files, by its symbol."""
    kernels = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            cubin = Path(folder, f"{path.stem}.cubin")
            report = _assemble(path, architecture, cubin)
            code = parse_listing(_run(str(_nvdisasm()), "--print-line-info", str(cubin)))
            for kernel in parse_report(report):
                instructions = tuple(code[kernel.symbol])
                kernels[kernel.symbol] = MachineKernel(path, kernel.registers, instructions)
    return kernels


def _assemble(path: Path, architecture: int, cubin: Path) -> str:
    ptxas = require_toolkit().nvcc.with_name("ptxas")
    flags = ["-v", "-lineinfo", f"-arch=sm_{architecture}"]
    return _run(str(ptxas), *flags, str(path), "-o", str(cubin))


def _nvdisasm() -> Path:
    files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []  # of requirements/test.txt
    (tool,) = [file.locate() for file in files if file.name == "nvdisasm"]
    return Path(str(tool))


def _run(*command: str) -> str:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout


def parse_listing(listing: str) -> dict[str, list[MachineInstruction]]:
    """The instructions of each kernel, without what follows the last EXIT.

    Those are slow paths, out of line.
    """
    code: dict[str, list[MachineInstruction]] = {}
    kernel, source, inlined = "", None, False
    for line in listing.splitlines():
        if found := re.match(r"\s*\.text\.(\S+):", line):
            kernel, source, inlined = found[1], None, False
            code[kernel] = []
        elif found := re.match(r'\s*//## File "([^"]+)", line (\d+)(.*)', line):
            if not inlined:  # the first of a chain is the innermost
                source = (Path(found[1]).name, int(found[2]))
            inlined = "inlined at" in found[3]
        elif kernel and (
            found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", line)
        ):
            inlined = False
            code[kernel].append(MachineInstruction(found[1], found[2], source))
    return {kernel: _before_last_exit(found) for kernel, found in code.items()}


def _before_last_exit(code: list[MachineInstruction]) -> list[MachineInstruction]:
    exits = [i for i, each in enumerate(code) if each.name == "EXIT"]
    return code[: exits[-1] + 1] if exits else code
