"""What nvcc makes of the kernels, executed: every kernel is launched and right, and mistakes seeded
into the PTX, or into how it is made, are noticed."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import ptx
import pytest
import torch
from emulator.build import Source
from ptx import Interpreter
from ptx.build import SOURCES, compile_with_nvcc
from ptx.mutants import KINDS, mutants
from support.budget import DTYPES, LAYOUTS, assert_within_budget, run
from support.cases import Case, get_case, on, voronoi_labels
from support.devices import filled_memory

from discloss_cuda import _ops, discriminative_loss, discriminative_loss_packed

pytestmark = pytest.mark.compiled

FUNCTIONS = (discriminative_loss, discriminative_loss_packed)
CAPABILITIES = tuple(ptx.ARCHITECTURES)
LEAST_SHARE = 0.8  # of instructions executed
WAYS = ((8, 2), (16, 2), (32, 2), (5, 2), (12, 2), (5, 1), (12, 1))  # channels, norm


@pytest.fixture
def device(compiled_ops: _ops.Ops) -> Iterator[Interpreter]:
    """The device that runs PTX, which the loss uses on CPU tensors."""
    interpreter = ptx.device()
    with _ops.use(compiled_ops), filled_memory(), interpreter.recorded_memory():
        yield interpreter
    interpreter.configure()


# --- every kernel --------------------------------------------------------------------------------


@functools.cache
def image(dim: int, norm: int = 2, height: int = 24) -> Case:
    """Two images with an ignored id."""
    labels = torch.stack([voronoi_labels((height, 28), 5 + i, seed=i) for i in range(2)])
    return on(labels, dim, norm=norm, ignore_label=1)


def clouds(norm: int) -> Case:
    """Three, of which one is empty."""
    points = image(16, norm).embeddings.flatten(2).transpose(1, 2)
    labels = torch.arange(600) // 7 % 5
    return Case(
        points[0, :600].contiguous(), labels, {"norm": norm}, torch.tensor([0, 301, 301, 600])
    )


def call_everything(device: Interpreter, capability: int) -> None:
    """Calls that reach every kernel, with right results: each dtype, norm and number of channels
    that has kernels of its own, with one launch a phase and, where there are clusters, with one
    for all; images and clouds, instances counted or not."""
    few, many = 4, 16  # multiprocessors: clusters are used from 16
    for multiprocessors in (few, many) if capability >= 9 else (few,):
        device.configure(compute_capability=capability, multiprocessors=multiprocessors)
        for dtype, (dim, norm) in itertools.product(DTYPES, WAYS):
            for layout in ("contiguous", "channels_last", "misaligned"):
                check(image(dim, norm), dtype, layout)
    for dtype, norm in itertools.product(DTYPES, (1, 2)):
        check(image(12, norm), dtype, max_instances=2000)  # sums in global memory
        check(image(70, norm), dtype)  # more channels than a tile has
        check(clouds(norm), dtype)
    check(get_case("two_hundred_instances"), torch.float32)
    offsets = _ops.current().batch_offsets(torch.tensor([0, 0, 2]), 3)
    assert offsets.tolist() == [0, 2, 2, 3]


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous", **options: int) -> None:
    x = LAYOUTS[layout](case.embeddings.to(dtype))
    assert_within_budget(case, run(*FUNCTIONS, case, x, "mixed", **options), "mixed")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_is_launched(
    device: Interpreter, capability: int, record_property: Callable[[str, object], None]
) -> None:
    device.clear_counts()
    call_everything(device, capability)
    executed = device.executed(capability)
    launched = {each.kernel for each in executed if each.warps > 0}
    # Kernels for clusters, where there are none, have no branch, only a trap.
    with_branch = {each.kernel for each in executed if each.name.startswith("bra")}
    trapping = {each.kernel for each in executed if each.name == "trap"} - with_branch
    assert {each.kernel for each in executed} - launched == (set() if capability >= 9 else trapping)
    share = sum(each.warps > 0 for each in executed) / len(executed)
    record_property("share of instructions executed", round(share, 3))
    print(f"sm_{ptx.ARCHITECTURES[capability]}: {share:.1%} of {len(executed)} instructions")
    assert share > LEAST_SHARE


# --- seeded mistakes -----------------------------------------------------------------------------

OF_ONE_KIND, SEEDS = 6, range(4)
MOST_TURNS = 100_000  # of a launch: a hundred times what the right kernels take


def outcome(device: Interpreter, capability: int, seed: int) -> str:
    """What is wrong with calls under a schedule, or an empty string. Blocks visit several tiles and
    several chunks of channels."""
    device.configure(seed=seed, compute_capability=capability, multiprocessors=1 + 3 * (seed % 2))
    try:
        check(image(16, height=121), torch.float32)
        check(image(70, norm=1, height=21), torch.float32)
    except (AssertionError, RuntimeError) as error:
        return str(error) or "?"
    return ""


def notice(device: Interpreter, capability: int, files: list[Path]) -> str:
    """What a schedule of several says when a device runs these files."""
    with device.chosen(capability, files), device.limited_turns(MOST_TURNS):
        return next(filter(None, (outcome(device, capability, seed) for seed in SEEDS)), "")


def files_of(device: Interpreter, architecture: int) -> list[Path]:
    return [each.ptx[architecture] for each in device.compiled]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capability", [8, 9])
def test_mutant_is_noticed(device: Interpreter, capability: int, kind: str, tmp_path: Path) -> None:
    device.clear_counts()
    assert outcome(device, capability, 0) == ""
    found = list(mutants(device, capability, device.executed(capability), kind))
    assert len(found) >= OF_ONE_KIND
    for mutant in found[:: len(found) // OF_ONE_KIND]:
        files = files_of(device, ptx.ARCHITECTURES[capability])
        files[files.index(mutant.path)] = mutant.write(tmp_path)
        assert notice(device, capability, files), mutant


def test_fast_math_is_noticed(device: Interpreter) -> None:
    """The interpreter knows no arithmetic that flushes or approximates where the package's does
    not: a kernel with it is not executed."""
    (source,) = [path for path in SOURCES if path.stem == "backward"]
    (fast,) = compile_with_nvcc("fast_math", [Source(source, ("-use_fast_math",))], [80])
    files = files_of(device, 80)
    (number,) = [i for i, path in enumerate(files) if path.stem.partition(".")[0] == source.stem]
    files[number] = fast.ptx[80]
    assert re.search(r"unknown instruction: \S+\.(ftz|approx)\b", notice(device, 8, files))


def test_code_for_less_than_the_launcher_assumes_is_noticed(device: Interpreter) -> None:
    """A launcher that takes the code for sm_80 for that of sm_90 asks for clusters."""
    with device.chosen(9, files_of(device, 80)):
        device.configure(compute_capability=9, multiprocessors=16)
        with pytest.raises((AssertionError, RuntimeError)):
            check(image(16), torch.float32)
