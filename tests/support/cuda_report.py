"""What the CUDA compiler makes of the kernels: registers, memory, machine code.

    PYTHONPATH=.:tests python -m support.cuda_report

compiles the kernels for every architecture and rewrites the table of registers, on the page of
docs/ that has its marks. Budgets stay as they are written there; a kernel without one gets a
question mark.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import ROOT
from .nvcc import require_toolkit

FOLDERS = "csrc/*/cuda"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
FLAGS = (
    "-std=c++17",
    "-O3",
    "--Werror=all-warnings",
    "-Xptxas=-v,-warn-spills,-warn-lmem-usage",
    "--cubin",
    f"-I{ROOT / 'csrc'}",
)
BEGIN, END = "<!-- registers: begin -->", "<!-- registers: end -->"


@dataclass(frozen=True)
class Compiled:
    """What ptxas says about a kernel."""

    symbol: str
    registers: int
    stack_bytes: int
    spilled_bytes: int
    static_shared_bytes: int


def compile_kernels(
    source: Path, architecture: int, cubin: Path, macros: Iterable[str] = ()
) -> list[Compiled]:
    """The kernels of a source, their machine code written to ``cubin``."""
    options = [f"--gpu-architecture=sm_{architecture}", *(f"-D{macro}" for macro in macros)]
    command = [str(require_toolkit().nvcc), *FLAGS, *options, str(source), "-o", str(cubin)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    problems = [line for line in result.stdout.splitlines() if not is_usual(line)]
    assert result.returncode == 0, "\n".join(problems)
    return parse_report(result.stdout)


def is_usual(line: str) -> bool:
    return line.startswith("ptxas info") or line.endswith("0 bytes spill loads")


def parse_report(report: str) -> list[Compiled]:
    kernels = []
    for part in report.split("Compiling entry function '")[1:]:
        used = re.search(r"Used (\d+) registers(.*)", part)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", part)
        assert used is not None, part
        assert memory is not None, part
        shared = re.search(r"(\d+) bytes smem", used[2])
        kernels.append(
            Compiled(
                symbol=part.partition("'")[0],
                registers=int(used[1]),
                stack_bytes=int(memory[1]),
                spilled_bytes=int(memory[2]),
                static_shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return kernels


def compile_all(
    architecture: int, folder: Path, macros: Iterable[str] = ()
) -> tuple[list[Compiled], list[Path]]:
    """The kernels of all sources, and the files in ``folder`` that have their machine code."""
    kernels, cubins = [], []
    for source in sorted(ROOT.glob(f"{FOLDERS}/*.cu")):
        cubins.append(folder / f"{source.stem}_{architecture}.cubin")
        kernels += compile_kernels(source, architecture, cubins[-1], macros)
    return kernels, cubins


def compiler_version() -> str:
    """As in "13.0.88": registers are comparable between runs of the same one."""
    command = [str(require_toolkit().nvcc), "--version"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", output)
    assert found is not None, output
    return found[1]


def kernel_names() -> set[str]:
    """The functions that are declared `__global__`, in any of the sources."""
    bounds = r"(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?"
    pattern = rf"__global__\s+{bounds}void\s+{bounds}(\w+)\s*\("
    names: set[str] = set()
    for path in sorted(ROOT.glob(f"{FOLDERS}/*.cu*")):
        code = re.sub(r"//.*", "", path.read_text())
        found = re.findall(pattern, code)
        assert len(found) == len(re.findall(r"\b__global__\b", code)), path
        names.update(found)
    return names


def name_of(symbol: str, names: Iterable[str]) -> str:
    """The kernel that a mangled symbol is an instantiation of."""
    (name,) = [name for name in names if f"{len(name)}{name}" in symbol]
    return name


def most_registers(kernels: Iterable[Compiled], names: Iterable[str]) -> dict[str, int]:
    """Registers of each kernel, of the instantiation that takes most."""
    names = list(names)
    most: dict[str, int] = {}
    for kernel in kernels:
        name = name_of(kernel.symbol, names)
        most[name] = max(most.get(name, 0), kernel.registers)
    return most


def disassemble(*cubins: Path) -> dict[str, list[str]]:
    """Opcodes of each kernel, as in "LDG.E.128"."""
    files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []  # of requirements/test.txt
    (tool,) = [file.locate() for file in files if file.name == "nvdisasm"]
    opcodes = {}
    for cubin in cubins:
        command = [str(tool), "-json", str(cubin)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        _, functions = json.loads(output)
        for function in functions:
            instructions = function["sass-instructions"]
            opcodes[function["function-name"]] = [each["opcode"] for each in instructions]
    return opcodes


def page() -> Path:
    """The one that has the table."""
    (found,) = [path for path in ROOT.glob("docs/*.md") if BEGIN in path.read_text()]
    return found


@dataclass(frozen=True)
class Table:
    """The table of registers in docs/."""

    compiler: str
    registers: Mapping[int, Mapping[str, int]]  # of an architecture, of a kernel
    budgets: Mapping[str, int]

    @staticmethod
    def read() -> Table:
        block = page().read_text().partition(BEGIN)[2].partition(END)[0]
        compiler = re.search(r"nvcc ([\d.]+)", block)
        rows = re.findall(r"^\| (\w+) \|(.*)\|$", block, re.MULTILINE)
        header, kernels = rows[0][1], rows[1:]
        targets = [int(target) for target in re.findall(r"sm_(\d+)", header)]
        cells = {name: [cell.strip() for cell in row.split("|")] for name, row in kernels}
        registers = {
            target: {name: int(row[column]) for name, row in cells.items()}
            for column, target in enumerate(targets)
        }
        budgets = {name: int(row[-1]) for name, row in cells.items() if row[-1] != "?"}
        return Table(compiler[1] if compiler else "", registers, budgets)

    def write(self) -> None:
        names = sorted(next(iter(self.registers.values())))
        header = ["kernel", *(f"sm_{target}" for target in self.registers), "budget"]
        rows = [
            [name, *(found[name] for found in self.registers.values()), self.budgets.get(name, "?")]
            for name in names
        ]
        lines = [header, ["---"] * len(header), *rows]
        table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        text = f"Registers a thread, nvcc {self.compiler}, most of all instantiations:"
        before, _, rest = page().read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        page().write_text(f"{before}{BEGIN}\n{text}\n\n{table}\n{END}{after}")


def main() -> None:
    names = kernel_names()
    registers = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in ARCHITECTURES:
            kernels, _ = compile_all(target, Path(folder))
            registers[target] = most_registers(kernels, names)
    Table(compiler_version(), registers, Table.read().budgets).write()


if __name__ == "__main__":
    main()
