"""The same numbers, bit for bit, whatever the threads do."""

from __future__ import annotations

import emulator
import pytest
import torch
from torch import Tensor

from discloss_cuda import _ops, discriminative_loss

NUMBERS = (0.5, 1.5, 1.0, 1.0, 0.001, 2)


def _inputs(kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two images of 6 channels; ids in cells, or anew for every pixel."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 6, 37, 41, generator=generator)
    labels = torch.randint(-3, 9, (2, 37, 41), generator=generator)
    if kind == "cells":
        labels = labels[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :37, :41]
    return embeddings.to(device), labels.contiguous().to(device)


def _everything(embeddings: Tensor, labels: Tensor) -> list[Tensor]:
    """All results of forward, and the gradient."""
    leaf = embeddings.detach().requires_grad_()
    results = _ops.current().forward(leaf, labels, None, 12, NUMBERS, [0])
    (gradient,) = torch.autograd.grad(results[0].sum(), leaf)
    return [*results, gradient]


@pytest.mark.parametrize("kind", ["cells", "random"])
def test_run_to_run(kind: str, device: torch.device) -> None:
    embeddings, labels = _inputs(kind, device)
    first = _everything(embeddings, labels)
    for _ in range(3):
        for ours, expected in zip(_everything(embeddings, labels), first, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.emulated
@pytest.mark.parametrize("compute_capability", [8, 9])
@pytest.mark.parametrize("kind", ["cells", "random"])
def test_any_order_of_threads_and_blocks(
    kind: str, compute_capability: int, emulated_ops: _ops.Ops
) -> None:
    embeddings, labels = _inputs(kind, torch.device("cpu"))
    device = emulator.device()
    first: list[Tensor] = []
    try:
        with _ops.use(emulated_ops):
            for seed in range(5):
                device.configure(
                    seed=seed,
                    compute_capability=compute_capability,
                    multiprocessors=16 if compute_capability == 9 else 4,
                    resident_blocks=1 + seed,
                )
                results = _everything(embeddings, labels)
                first = first or results
                for ours, expected in zip(results, first, strict=True):
                    assert torch.equal(ours, expected)
    finally:
        device.configure()


def test_the_deterministic_flag_changes_nothing(device: torch.device) -> None:
    embeddings, labels = _inputs("cells", device)
    before = torch.are_deterministic_algorithms_enabled()
    losses = []
    try:
        for flag in (False, True):
            torch.use_deterministic_algorithms(flag)
            losses.append(discriminative_loss(embeddings, labels))
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(*losses)
