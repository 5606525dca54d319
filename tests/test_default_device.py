"""Another default device or dtype, which code that names neither would fall for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.ranks import join
from torch import Tensor, distributed

from discloss_cuda import (
    DiscriminativeLoss,
    discriminative_loss,
    discriminative_loss_packed,
    reference,
)

# Forward-mode differentiation and torch.compile import parts of torch that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

EXPECTED = 0.128  # L_var = 0.125, L_dist = 0, L_reg = 3, by hand

Call = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def group() -> Iterator[distributed.ProcessGroup]:
    """This process alone."""
    join(0, distributed.HashStore(), 1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


def packed(function: Any, by_batch: bool = False, **options: Any) -> Call:
    """A call of the packed form with one cloud."""

    def call(x: Tensor, labels: Tensor) -> Tensor:
        points, ids = x[0].t(), labels[0]
        if by_batch:
            return function(points, ids, batch=torch.zeros_like(ids), ignore_label=0, **options)
        offsets = torch.tensor([0, len(ids)], device=x.device)
        return function(points, ids, offsets, ignore_label=0, **options)

    return call


def second_derivative(x: Tensor, labels: Tensor) -> Tensor:
    loss = discriminative_loss(x, labels, ignore_label=0)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.square().sum().backward()
    x.grad = None
    return discriminative_loss(x, labels, ignore_label=0)


def tangent(x: Tensor, labels: Tensor) -> Tensor:
    def loss(x: Tensor) -> Tensor:
        return discriminative_loss(x, labels, ignore_label=0)

    return torch.func.jvp(loss, (x,), (torch.ones_like(x),))[0]


def batched(x: Tensor, labels: Tensor) -> Tensor:
    function = packed(discriminative_loss_packed)
    return torch.vmap(function, in_dims=(0, None))(x[None], labels)[0]


ENTRIES: dict[str, Call] = {
    "function": lambda x, labels: discriminative_loss(x, labels, ignore_label=0),
    "given": lambda x, labels: discriminative_loss(x, labels, ignore_label=0, max_instances=2),
    "norm 1": lambda x, labels: discriminative_loss(x, labels, ignore_label=0, norm=1),
    "module": lambda x, labels: DiscriminativeLoss(ignore_label=0)(x, labels),
    "offsets": packed(discriminative_loss_packed),
    "batch": packed(discriminative_loss_packed, by_batch=True),
    "reference": lambda x, labels: reference.discriminative_loss(x, labels, ignore_label=0),
    "reference, offsets": packed(reference.discriminative_loss_packed),
    "reference, batch": packed(reference.discriminative_loss_packed, by_batch=True),
    "second derivative": second_derivative,
    "tangent": tangent,
    "vmap": batched,
}


@contextlib.contextmanager
def defaults(device: str, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def assert_right(call: Call, device: torch.device, dtype: torch.dtype) -> None:
    x = torch.tensor([[[0.0, 2.0, 5.0, 5.0]]], device=device, dtype=dtype).requires_grad_()
    labels = torch.tensor([[7, 7, 3, 0]], device=device)
    for default_device in ("cpu", "meta"):
        for default_dtype in (torch.float32, torch.float64, torch.bfloat16):
            x.grad = None
            with defaults(default_device, default_dtype):
                loss = call(x, labels)
                loss.backward()
            assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert loss.item() == pytest.approx(EXPECTED, rel=1e-6)
            assert x.grad is not None
            assert x.grad.dtype == dtype
            assert x.grad[0, 0, 3] == 0
            assert x.grad[0, 0, :3].ne(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry(device: torch.device, name: str, dtype: torch.dtype) -> None:
    assert_right(ENTRIES[name], device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_process_group(device: torch.device, group: Any, dtype: torch.dtype) -> None:
    options = {"process_group": group, "max_instances": 3}
    assert_right(
        lambda x, labels: discriminative_loss(x, labels, ignore_label=0, **options), device, dtype
    )
    assert_right(packed(discriminative_loss_packed, **options), device, dtype)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", ["function", "given", "offsets", "batch"])
def test_compiled(device: torch.device, name: str) -> None:
    torch._dynamo.reset()
    x = torch.tensor([[[0.0, 2.0, 5.0, 5.0]]], device=device).requires_grad_()
    labels = torch.tensor([[7, 7, 3, 0]], device=device)
    compiled = torch.compile(ENTRIES[name], fullgraph=True, backend="aot_eager")
    with defaults("meta", torch.float64):
        loss = compiled(x, labels)
    assert loss.item() == pytest.approx(EXPECTED, rel=1e-6)
