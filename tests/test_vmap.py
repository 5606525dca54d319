"""torch.vmap over the loss: the numbers of a Python loop, from one call of each op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.op_calls import OpCalls
from torch import Tensor

from discloss_cuda import (
    DiscriminativeLossTerms,
    _ops,
    discriminative_loss,
    discriminative_loss_packed,
    reference,
)

V = 3  # the extra axis
# torch.compile and torch.func import parts of torch that torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture
def batches(device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings ``[V, B, D, H, W]`` and labels ``[V, B, H, W]``, each batch with other ids."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(V, 2, 3, 4, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (V, 2, 4, 5), generator=generator)
    labels += 10 * torch.arange(V)[:, None, None, None]
    labels[0].clamp_(max=1)  # fewer instances here
    return x.to(device), labels.to(device)


def loop(function: Callable[..., Any], in_dims: tuple[int | None, ...], *arguments: Tensor) -> Any:
    """What ``torch.vmap(function, in_dims)`` is to give."""
    each = [
        function(
            *(a if d is None else a.select(d, v) for a, d in zip(arguments, in_dims, strict=True))
        )
        for v in range(V)
    ]
    if isinstance(each[0], Tensor):
        return torch.stack(each)
    return type(each[0])(*(torch.stack(term) for term in zip(*each, strict=True)))


def assert_same(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("max_instances", [None, 4])
@pytest.mark.parametrize("in_dims", [(0, 0), (2, 1), (-1, -1), (0, None), (None, 0)])
def test_vmap_is_a_loop_in_one_call(
    batches: tuple[Tensor, Tensor], in_dims: tuple[int | None, int | None], max_instances: int
) -> None:
    x, labels = (
        tensor[0] if dim is None else tensor.movedim(0, dim)
        for tensor, dim in zip(batches, in_dims, strict=True)
    )

    def terms(x: Tensor, labels: Tensor) -> Any:
        options: dict[str, Any] = {"reduction": "none", "return_terms": True, "ignore_label": 0}
        return discriminative_loss(x, labels, max_instances=max_instances, **options)

    expected = loop(terms, in_dims, x, labels)
    with OpCalls(_ops.current().forward) as forward:
        assert_same(torch.vmap(terms, in_dims)(x, labels), expected)
    assert len(forward.calls) == 1


@pytest.mark.parametrize("in_dims", [(0, 0), (2, 1), (0, None), (None, 0)])
def test_vmap_of_grad_and_grad_of_vmap(
    batches: tuple[Tensor, Tensor], in_dims: tuple[int | None, int | None]
) -> None:
    x, labels = (
        tensor[0] if dim is None else tensor.movedim(0, dim)
        for tensor, dim in zip(batches, in_dims, strict=True)
    )
    gradient = torch.func.grad(discriminative_loss)
    expected = loop(gradient, in_dims, x, labels)
    ops = _ops.current()
    with OpCalls(ops.forward) as forward, OpCalls(ops.backward) as backward:
        assert_same(torch.vmap(gradient, in_dims)(x, labels), expected)
        assert (len(forward.calls), len(backward.calls)) == (1, 1)

        def total(x: Tensor) -> Tensor:
            return torch.vmap(discriminative_loss, in_dims)(x, labels).sum()

        summed = expected.sum(0) if in_dims[0] is None else expected.movedim(0, in_dims[0])
        assert_same(torch.func.grad(total)(x), summed)
        leaf = x.clone().requires_grad_()
        total(leaf).backward()
        assert leaf.grad is not None
        assert_same(leaf.grad, summed)
        assert (len(forward.calls), len(backward.calls)) == (3, 3)


def test_jacobians(batches: tuple[Tensor, Tensor]) -> None:
    """All rows in one backward, through either door; is_grads_batched is another, older vmap of
    torch's, which takes no rules for ops and goes row by row."""
    x, labels = batches[0][0].requires_grad_(), batches[1][0]

    def each(x: Tensor) -> Tensor:
        return discriminative_loss(x, labels, reduction="none")

    rows = torch.eye(2, dtype=x.dtype, device=x.device)
    loss = each(x)

    def row_of(upstream: Tensor) -> Tensor:
        return torch.autograd.grad(loss, x, upstream, retain_graph=True)[0]

    expected = torch.stack([row_of(row) for row in rows])
    with OpCalls(_ops.current().backward) as backward:
        assert_same(torch.func.jacrev(each)(x.detach()), expected)
        assert_same(torch.vmap(row_of)(rows), expected)
    assert len(backward.calls) == 2
    assert_same(torch.autograd.grad(loss, x, rows, is_grads_batched=True)[0], expected)


def test_vmap_of_a_hessian(batches: tuple[Tensor, Tensor]) -> None:
    x, labels = batches[0][:, :1, :2, :2, :3], batches[1][:, :1, :2, :3]
    found = torch.vmap(torch.func.hessian(discriminative_loss))(x, labels)
    expected = loop(torch.func.hessian(reference.discriminative_loss), (0, 0), x, labels)
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_vmap_in_vmap(batches: tuple[Tensor, Tensor]) -> None:
    def one(x: Tensor, labels: Tensor) -> Tensor:
        return discriminative_loss(x[None], labels[None])

    with OpCalls(_ops.current().forward) as forward:
        found = torch.vmap(torch.vmap(one))(*batches)
    assert len(forward.calls) == 1
    assert_same(
        found, loop(lambda x, y: discriminative_loss(x, y, reduction="none"), (0, 0), *batches)
    )


def test_compiled_vmap(batches: tuple[Tensor, Tensor]) -> None:
    def each(x: Tensor, labels: Tensor) -> Tensor:
        return torch.vmap(lambda x, y: discriminative_loss(x, y, max_instances=4))(x, labels)

    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*batches), each(*batches))


# --- packed batches -------------------------------------------------------------------------------


@pytest.fixture
def clouds(batches: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """``[V, N_total, D]``, ``[V, N_total]``, and ``[V, B + 1]`` offsets, all different."""
    x, labels = batches
    offsets = torch.tensor([[0, 7, 7, 40], [0, 0, 39, 40], [0, 40, 40, 40]], device=x.device)
    return x.movedim(2, -1).reshape(V, 40, 3), labels.reshape(V, 40), offsets


@pytest.mark.parametrize("in_dims", [(0, 0, None), (1, None, None), (None, 1, None), (0, 0, 0)])
def test_vmap_of_packed_clouds(
    clouds: tuple[Tensor, Tensor, Tensor], in_dims: tuple[int | None, ...]
) -> None:
    """One call, unless the clouds of the batches have other sizes."""
    arguments = [
        tensor[0] if dim is None else tensor.movedim(0, dim)
        for tensor, dim in zip(clouds, in_dims, strict=True)
    ]

    def loss(x: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
        return discriminative_loss_packed(x, labels, offsets, reduction="none")

    def gradient(*arguments: Tensor) -> Tensor:
        return torch.func.grad(lambda *a: loss(*a).square().sum())(*arguments)

    expected = [loop(function, in_dims, *arguments) for function in (loss, gradient)]
    ops = _ops.current()
    with OpCalls(ops.forward) as forward, OpCalls(ops.backward) as backward:
        for function, result in zip((loss, gradient), expected, strict=True):
            assert_same(torch.vmap(function, in_dims)(*arguments), result)
    calls = 1 if in_dims[2] is None else V
    assert (len(forward.calls), len(backward.calls)) == (2 * calls, calls)


def test_vmap_over_batch_vectors(clouds: tuple[Tensor, Tensor, Tensor]) -> None:
    x, labels, _ = clouds
    batch = torch.arange(40, device=x.device).div(torch.tensor([[20], [30], [14]], device=x.device))
    batch = batch.floor().to(torch.int64)

    def loss(x: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        return discriminative_loss_packed(x, labels, batch=batch, batch_size=3)

    expected = loop(loss, (0, 0, 0), x, labels, batch)
    assert_same(torch.vmap(loss)(x, labels, batch), expected)


@pytest.mark.parametrize("offsets", [[1, 40], [0, 39], [0, 30, 20, 40]])
@pytest.mark.parametrize("batched", [False, True])
def test_wrong_offsets_stay_an_error(
    clouds: tuple[Tensor, Tensor, Tensor], offsets: list[int], batched: bool
) -> None:
    x, labels, _ = clouds
    if x.device.type == "cuda":
        pytest.skip("a device-side assertion ends the process")
    given = torch.tensor([offsets] * V if batched else offsets)
    in_dims = (0, 0, 0 if batched else None)
    with pytest.raises((ValueError, RuntimeError), match=r"offsets|__trap"):
        torch.vmap(discriminative_loss_packed, in_dims)(x, labels, given)


def test_vmap_of_the_op_of_one_image(batches: tuple[Tensor, Tensor]) -> None:
    """Whose terms may be asked for without the axis of the images."""
    x, labels = (tensor[:, :1] for tensor in batches)

    def terms(x: Tensor, labels: Tensor) -> Any:
        numbers = (0.5, 1.5, 1.0, 1.0, 0.001, 2)
        results = _ops.current().forward(x, labels, None, 4, numbers, [], squeeze=True)
        return results[0] if x.shape[0] > 1 else DiscriminativeLossTerms(*results[:4])

    assert_same(torch.vmap(terms)(x, labels), loop(terms, (0, 0), x, labels))
    both = batches[0], batches[1]
    assert_same(torch.vmap(terms)(*both), loop(terms, (0, 0), *both))


def test_vmap_over_upstream_gradients_of_one_image(batches: tuple[Tensor, Tensor]) -> None:
    x = batches[0][0, :1].requires_grad_()
    loss = discriminative_loss(x, batches[1][0, :1], max_instances=4)
    upstream = torch.arange(1.0, V + 1, dtype=loss.dtype, device=loss.device)

    def gradient(upstream: Tensor) -> Tensor:
        return torch.autograd.grad(loss, x, upstream, retain_graph=True)[0]

    assert_same(torch.vmap(gradient)(upstream), loop(gradient, (0,), upstream))
