"""How many kernels a call launches: a number that no size changes, and one for a small batch."""

from __future__ import annotations

from collections.abc import Iterator

import emulator
import pytest
import torch
from emulator import Emulator

from discloss_cuda import _ops, discriminative_loss

pytestmark = pytest.mark.emulated

PHASES = (9, 2)  # of forward, beside a memset, and of backward


@pytest.fixture
def device(emulated_ops: _ops.Ops) -> Iterator[Emulator]:
    """The emulated device, which the loss uses on CPU tensors."""
    with _ops.use(emulated_ops):
        yield emulator.device()
    emulator.device().configure()


def launches(
    device: Emulator,
    compute_capability: int,
    shape: tuple[int, ...] = (2, 8, 12, 12),
    instances: int = 5,
    dtype: torch.dtype = torch.float32,
    norm: int = 2,
    ignore_label: int | tuple[int, ...] | None = None,
    multiprocessors: int = 16,
) -> tuple[int, int]:
    """Of forward and of backward."""
    device.configure(
        compute_capability=compute_capability, multiprocessors=multiprocessors, find_races=False
    )
    labels = torch.arange(shape[0] * shape[2] * shape[3]).view(shape[0], *shape[2:]) % instances
    x = torch.rand(shape, dtype=dtype, requires_grad=True)
    loss = discriminative_loss(
        x, labels, max_instances=instances, norm=norm, ignore_label=ignore_label
    )
    forward = device.launches
    loss.backward()
    return forward, device.launches - forward


def test_no_size_changes_the_number(device: Emulator) -> None:
    assert launches(device, 8) == PHASES
    assert launches(device, 8, shape=(5, 3, 7, 30)) == PHASES
    assert launches(device, 8, instances=90) == PHASES
    assert launches(device, 8, shape=(1, 70, 4, 4)) == PHASES
    assert launches(device, 8, ignore_label=0) == (PHASES[0] + 1, PHASES[1])
    assert launches(device, 8, ignore_label=tuple(range(256))) == (PHASES[0] + 1, PHASES[1])


def test_a_small_batch_is_one_launch(device: Emulator) -> None:
    one = (1, 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert launches(device, 9, dtype=dtype) == one
    assert launches(device, 9, ignore_label=tuple(range(256))) == one
    assert launches(device, 9, shape=(2, 3, 96, 85)) == one
    assert launches(device, 9, shape=(1, 8, 64, 64), instances=128) == one
    assert launches(device, 9, shape=(32, 1, 4, 4), instances=16) == one


def test_what_is_not_small(device: Emulator) -> None:
    assert launches(device, 9, shape=(2, 1, 96, 86)) == PHASES
    assert launches(device, 9, shape=(1, 70, 64, 64)) == PHASES
    assert launches(device, 9, shape=(1, 8, 64, 64), instances=129) == PHASES
    assert launches(device, 9, shape=(32, 1, 4, 4), instances=17) == PHASES
    assert launches(device, 9, shape=(33, 3, 4, 4)) == PHASES
    assert launches(device, 9, multiprocessors=15) == PHASES
    assert launches(device, 9, dtype=torch.float64) == PHASES
    assert launches(device, 9, norm=1) == PHASES
    assert launches(device, 9, ignore_label=tuple(range(257))) == (PHASES[0] + 2, 1)
