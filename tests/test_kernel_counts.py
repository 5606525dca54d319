"""What the compiled kernels execute does not rise unnoticed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from support.cuda_report import compiler_version

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import count_kernels
from measuring.cards import CARDS
from measuring.count_gate import COMMITTED, EXACT, UPDATE, risen
from measuring.counts import WORKLOADS, KernelCounts, count
from measuring.sass import MachineInstruction, MachineKernel, parse_listing

pytestmark = pytest.mark.compiled

KERNEL = KernelCounts(
    kernel="a_kernel<float>",
    ptx=1000.0,
    kinds={"control": 600.0, "f32": 400.0},
    sectors=500.0,
    least_sectors=400.0,
    wavefronts=100.0,
    least_wavefronts=100.0,
    registers=64,
    warps_resident=32,
    bytes_in_flight=16384,
    sass=1200.0,
)


@pytest.mark.parametrize("name", WORKLOADS)
def test_counts_have_not_risen(compiled_ops: object, name: str) -> None:
    """With another compiler the counts are others, and nothing is compared."""
    committed = json.loads(COMMITTED.read_text())
    if committed["compiler"] != compiler_version():
        pytest.skip(f"counted with nvcc {committed['compiler']}")
    found = count(WORKLOADS[name])
    assert risen(found, committed["workloads"][name]) == [], UPDATE


@pytest.mark.parametrize("figure", EXACT)
def test_a_rise_of_five_percent_is_an_error(figure: str) -> None:
    before = [KERNEL.to_json()]
    assert risen([KERNEL], before) == []
    value = getattr(KERNEL, figure)
    for factor, is_error in ((0.9, False), (1.02, False), (1.05, True)):
        changed = dataclasses.replace(KERNEL, **{figure: type(value)(value * factor)})
        assert bool(risen([changed], before)) == is_error
    renamed = dataclasses.replace(KERNEL, kernel="b_kernel")
    assert risen([renamed], before) == ["a_kernel<float> is not launched", "b_kernel is new"]


def test_the_card_says_what_bounds_a_kernel() -> None:
    h200 = CARDS["H200"]
    # 500 sectors of 32 bytes, at 4800 GB/s over 132 multiprocessors of 1.98 GHz
    assert h200.memory_cycles(KERNEL) == pytest.approx(500 * 32 / (4800 / 1.98 / 132))
    assert h200.bound(KERNEL) == ("memory", 1.0)
    limit, ratio = h200.bound(dataclasses.replace(KERNEL, sass=8000.0))
    assert limit == "issue"
    assert ratio == pytest.approx(2000 / h200.memory_cycles(KERNEL))
    assert h200.bound(dataclasses.replace(KERNEL, wavefronts=9000.0))[0] == "shared memory"
    for card in CARDS.values():
        assert card.source
        assert "counts, not times" in count_kernels.NOTE
        assert KERNEL.kernel in count_kernels.table([KERNEL], card)


LISTING = """
.text.a_kernel:
	//## File "/x/a.cuh", line 7 inlined at "/x/b.cu", line 20
	//## File "/x/b.cu", line 20
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 LDG.E R8, desc[UR4][R2.64+0x10] ;
	//## File "/x/b.cu", line 21
        /*0020*/                   FADD R9, R8, R4 ;
        /*0030*/                   LDG.E.U16 R10, desc[UR4][R2.64] ;
        /*0040*/                   EXIT ;
        /*0050*/                   BRA 0x50;
"""


def test_listing_of_machine_code() -> None:
    code = parse_listing(LISTING)["a_kernel"]
    assert [each.name for each in code] == ["LDG.E.128", "LDG.E", "FADD", "LDG.E.U16", "EXIT"]
    assert code[1].source == ("a.cuh", 7)
    assert code[2] == MachineInstruction("FADD", " R9, R8, R4 ", ("b.cu", 21))
    kernel = MachineKernel(Path("a.ptx"), 64, tuple(code))
    assert kernel.bytes_in_flight() == 20
    assert kernel.warps_resident(256, 36 * 1024) == 32
    assert kernel.warps_resident(256, 100 * 1024) == 16
    assert kernel.warps_resident(1024, 0) == 32


def test_workloads_are_coherent_or_not() -> None:
    for workload in WORKLOADS.values():
        x, labels = workload.build()
        assert x.shape == (1, workload.channels, *labels.shape[1:])
        assert x.dtype == workload.dtype
        same = (labels[:, :, 1:] == labels[:, :, :-1]).float().mean()
        assert (same > 0.9) != workload.random
        assert labels.unique().numel() >= 8
        assert labels.dtype == torch.int64
