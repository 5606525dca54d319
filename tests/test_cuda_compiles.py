"""The CUDA kernels compile for every architecture, without warnings, spills or local memory, within
their budgets of registers, and to the memory accesses that the docs promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.cuda_report import (
    ARCHITECTURES,
    Compiled,
    Table,
    compile_all,
    compile_kernels,
    compiler_version,
    disassemble,
    kernel_names,
    most_registers,
    name_of,
)
from support.nvcc import packages, require_toolkit

from build_tools.nvcc import NvccNotFoundError

# Loads and stores of tiles are of 16 bytes where addresses allow, and so are the steps of a sum.
WIDE_LOAD, WIDE_STORE = r"LDG\.E\.(\w+\.)*128", r"STG\.E\.(\w+\.)*128"
WIDE_SUMS = (r"LDS\.(\w+\.)*128", r"STS\.(\w+\.)*128")
REQUIRED = {
    "sum_pixels_kernel": (WIDE_LOAD, *WIDE_SUMS),
    "sum_pull_kernel": (WIDE_LOAD, *WIDE_SUMS),
    "sum_pull_in_registers_kernel": (WIDE_LOAD, *WIDE_SUMS),
    "gradient_kernel": (WIDE_LOAD, WIDE_STORE),
    "gradient_in_registers_kernel": (WIDE_LOAD, WIDE_STORE),
    "push_in_registers_kernel": (WIDE_LOAD,),
}

# Ids enter a table by compare-and-swap and a list by an integer sum; nothing else is atomic.
# Atomics on global memory are ATOM, ATOMG, RED and REDG, on shared memory ATOMS.
ATOMIC = r"(ATOM|RED)[GS]?\."
KERNELS_OF_IDS = {"insert_ids_kernel", "insert_ignored_kernel", "small_forward_kernel"}
ATOMICS_OF_IDS = r"ATOMG\.E\.(CAS\.64|ADD)(\.STRONG\.GPU)?"

# What the kernel writes itself is not read through the cache for constants.
READ_ONLY = r"LDG\.(\w+\.)*CONSTANT"
KERNELS_OF_PHASES = {"small_forward_kernel", "small_backward_kernel"}

# A kernel that may come early waits for the one ahead before it touches memory that a kernel may
# have written. Its own arguments lie elsewhere (LDC, ULDC).
MEMORY = r"(LD|ST|LDG|STG|ATOM|ATOMG|RED|REDG)(\.|$)"
WAIT, LET_NEXT = "ACQBULK", "PREEXIT"

# Statements for a seeded kernel: a load of 16 bytes, all of which are used.
WIDE = "const float4 w = reinterpret_cast<float4*>(y)[i]; const float sum = w.x + w.y + w.z + w.w; "


def check_memory(kernels: list[Compiled]) -> None:
    for kernel in kernels:
        assert kernel.stack_bytes == kernel.spilled_bytes == 0, kernel
        assert kernel.static_shared_bytes == 0, kernel  # the emulator has none


def check_registers(architecture: int, registers: dict[str, int], table: Table) -> None:
    assert set(table.budgets) == set(registers), "run support.cuda_report, write budgets"
    for name, count in registers.items():
        assert count <= table.budgets[name], f"{name} has {count} registers on sm_{architecture}"
    if table.compiler == compiler_version():
        assert registers == table.registers[architecture], "run support.cuda_report"


def check_instructions(name: str, opcodes: list[str]) -> None:
    for pattern in REQUIRED.get(name, ()):
        assert any(re.match(pattern, opcode) for opcode in opcodes), f"{name} has no {pattern}"
    allowed = ATOMICS_OF_IDS if name in KERNELS_OF_IDS else "none"
    atomics = {opcode for opcode in opcodes if re.match(ATOMIC, opcode)}
    surplus = {opcode for opcode in atomics if not re.fullmatch(allowed, opcode)}
    assert surplus == set(), f"{name} has atomics"
    stale = {opcode for opcode in opcodes if re.match(READ_ONLY, opcode)}
    assert name not in KERNELS_OF_PHASES or stale == set(), f"{name} reads constants"


def check_waits_first(name: str, opcodes: list[str]) -> None:
    assert LET_NEXT in opcodes, f"{name} does not let the next kernel come"
    assert WAIT in opcodes, f"{name} does not wait"
    touched = [i for i, opcode in enumerate(opcodes) if re.match(MEMORY, opcode)]
    assert opcodes.index(WAIT) < touched[0], f"{name} waits after {opcodes[touched[0]]}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_to_what_the_design_says(architecture: int, tmp_path: Path) -> None:
    kernels, cubins = compile_all(architecture, tmp_path)
    names = kernel_names()
    check_memory(kernels)
    check_registers(architecture, most_registers(kernels, names), Table.read())
    opcodes = disassemble(*cubins)
    for kernel in kernels:
        check_instructions(name_of(kernel.symbol, names), opcodes[kernel.symbol])


def test_kernels_that_may_come_early_wait_first(tmp_path: Path) -> None:
    kernels, cubins = compile_all(90, tmp_path, ["DISCLOSS_DEPENDENT_LAUNCHES=1"])
    check_memory(kernels)
    opcodes = disassemble(*cubins)
    for kernel in kernels:
        check_waits_first(kernel.symbol, opcodes[kernel.symbol])


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("x[0] += y[0];", "does not let"),
        ("cudaTriggerProgrammaticLaunchCompletion(); x[0] += y[0];", "does not wait"),
        (
            "cudaTriggerProgrammaticLaunchCompletion(); const float early = x[0]; "
            "cudaGridDependencySynchronize(); y[0] = early;",
            "waits after LDG",
        ),
    ],
)
def test_kernel_that_does_not_wait_first_is_an_error(
    body: str, complaint: str, tmp_path: Path
) -> None:
    source, cubin = tmp_path / "kernel.cu", tmp_path / "kernel.cubin"
    source.write_text(f"__global__ void bad_kernel(float* x, float* y) {{ {body} }}")
    (kernel,) = compile_kernels(source, 90, cubin)
    with pytest.raises(AssertionError, match=complaint):
        check_waits_first("bad_kernel", disassemble(cubin)[kernel.symbol])


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("int unused;", "was declared but never referenced"),
        ("float a[64]; for (int i = 0; i < n; ++i) a[int(x[i])] = i; x[0] = a[n];", "Local memory"),
        (
            "float a[96]; for (int i = 0; i < 96; ++i) a[i] = x[i * n]; __syncthreads(); "
            "for (int i = 0; i < 96; ++i) x[i * n + 1] = a[i] * a[95 - i];",
            "Registers are spilled",
        ),
    ],
)
def test_complaint_of_the_compiler_is_an_error(
    statement: str, complaint: str, tmp_path: Path
) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(
        f"__global__ void __launch_bounds__(1024) bad_kernel(float* x, int n) {{ {statement} }}"
    )
    with pytest.raises(AssertionError, match=complaint):
        compile_kernels(source, ARCHITECTURES[0], tmp_path / "kernel.cubin")


@pytest.mark.parametrize(
    ("name", "body", "complaint"),
    [
        ("gradient_kernel", "x[i] += y[i];", "gradient_kernel has no LDG"),
        ("gradient_kernel", WIDE + "x[i] = sum;", "gradient_kernel has no STG"),
        ("sum_pixels_kernel", WIDE + "x[i] = sum;", "sum_pixels_kernel has no LDS"),
        ("push_in_registers_kernel", WIDE + "atomicAdd(x, sum);", "RED"),
        ("push_in_registers_kernel", WIDE + "atomicAdd(tile, sum); x[i] = tile[i];", "ATOMS.CAS"),
        ("push_kernel", "x[i] = atomicExch(y, 1.0f);", "ATOM.*EXCH"),
        ("insert_ids_kernel", "atomicAdd(x, 1.0f);", "RED"),
        ("small_forward_kernel", "x[i] = __ldg(y + i);", "CONSTANT"),
    ],
)
@pytest.mark.parametrize("architecture", [80, 90])
def test_wrong_instructions_are_an_error(
    name: str, body: str, complaint: str, architecture: int, tmp_path: Path
) -> None:
    source, cubin = tmp_path / "kernel.cu", tmp_path / "kernel.cubin"
    source.write_text(
        f"__global__ void {name}(float* x, float* y) {{ "
        f"extern __shared__ float tile[]; const int i = threadIdx.x; tile[i] = x[i]; {body} }}"
    )
    (kernel,) = compile_kernels(source, architecture, cubin)
    with pytest.raises(AssertionError, match=complaint):
        check_instructions(name, disassemble(cubin)[kernel.symbol])


def test_table_is_held_against_the_compiler() -> None:
    table = Table("another", {90: {"push_kernel": 40}}, {"push_kernel": 64})
    check_registers(90, {"push_kernel": 60}, table)
    with pytest.raises(AssertionError, match="push_kernel has 65 registers on sm_90"):
        check_registers(90, {"push_kernel": 65}, table)
    with pytest.raises(AssertionError, match="write budgets"):
        check_registers(90, {"push_kernel": 60, "new_kernel": 8}, table)
    same = Table(compiler_version(), table.registers, table.budgets)
    check_registers(90, {"push_kernel": 40}, same)
    with pytest.raises(AssertionError, match=r"run support\.cuda_report"):
        check_registers(90, {"push_kernel": 41}, same)


def test_missing_compiler_is_an_error_that_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none_found() -> None:
        raise NvccNotFoundError("found no CUDA toolkit")

    monkeypatch.setattr("support.nvcc.find_toolkit", none_found)
    with pytest.raises(NvccNotFoundError) as error:
        require_toolkit()
    assert packages()
    assert all(package in str(error.value) for package in packages())
