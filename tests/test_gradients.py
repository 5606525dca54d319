"""Gradients beyond the plain one: other upstream factors, finite differences to second order
through both doors, repeated backward passes, overflow and underflow of half gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.budget import DTYPES, HALF, LAYOUTS, assert_within_budget, expected, run, upstream
from support.cases import DENSE, PACKED, Case, clustered_embeddings, get_case
from torch import Tensor

from discloss_cuda import (
    DiscriminativeLossFunction,
    discriminative_loss,
    discriminative_loss_packed,
    reference,
)

FUNCTIONS = (discriminative_loss, discriminative_loss_packed)
TWINS = (reference.discriminative_loss, reference.discriminative_loss_packed)
REPRESENTATIVE = ("image_d16", "mixed_counts", "norm1_d33", "clouds_d3", "clouds_d33")


@pytest.mark.parametrize("name", [*DENSE, *PACKED])
def test_another_upstream_for_every_term_and_image(device: torch.device, name: str) -> None:
    case = get_case(name)
    x = case.embeddings.to(device, torch.float32)
    assert_within_budget(case, run(*FUNCTIONS, case, x, "mixed"), "mixed")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_another_upstream_in_every_dtype(
    device: torch.device, name: str, dtype: torch.dtype, layout: str
) -> None:
    case = get_case(name)
    x = LAYOUTS[layout](case.embeddings.to(device, dtype))
    assert_within_budget(case, run(*FUNCTIONS, case, x, "mixed"), "mixed")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["mixed_counts", "clouds_d3"])
def test_a_scalar_with_an_upstream_other_than_one(
    device: torch.device, name: str, reduction: str
) -> None:
    case = get_case(name)
    x = case.leaf(device)
    function = FUNCTIONS[case.offsets is not None]
    loss = function(x, *case.arguments(device), reduction=reduction, **case.options)
    (grad,) = torch.autograd.grad(loss, x, torch.full_like(loss, -2.5))
    factor = -2.5 / (case.images if reduction == "mean" else 1)
    truth = torch.from_numpy(expected(case, torch.float64, "loss")[0].grad) * factor
    torch.testing.assert_close(grad.cpu(), truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_each_term_alone(device: torch.device, name: str) -> None:
    """With one term used, autograd hands the other upstream gradients over as None."""
    case = get_case(name)
    x = case.leaf(device)
    options: dict[str, Any] = {**case.options, "reduction": "none", "return_terms": True}
    ours = FUNCTIONS[case.offsets is not None](x, *case.arguments(device), **options)
    theirs: Any = TWINS[case.offsets is not None](x, *case.arguments(device), **options)
    weights = upstream(case.images, "mixed")[0].to(device)
    for a, b in zip(ours, theirs, strict=True):
        grads = [torch.autograd.grad(term, x, weights, retain_graph=True)[0] for term in (a, b)]
        assert grads[0].abs().max() > 0
        torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["image_d16", "clouds_d16"])
def test_a_second_backward_gives_the_same_bits(
    device: torch.device, name: str, dtype: torch.dtype
) -> None:
    case = get_case(name)
    x = case.leaf(device, dtype)
    before = x.detach().clone()
    function = FUNCTIONS[case.offsets is not None]
    loss = function(x, *case.arguments(device), **case.options)
    factor = torch.full_like(loss, 3.0)
    grads = [torch.autograd.grad(loss, x, factor, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(x.detach(), before)
    assert factor.item() == 3.0
    loss.backward(factor)
    assert x.grad is not None
    assert torch.equal(x.grad, grads[0])


def test_a_channels_last_leaf_keeps_its_layout(device: torch.device) -> None:
    x = get_case("image_d16").embeddings.to(device, torch.float32)
    leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    discriminative_loss(leaf, get_case("image_d16").labels.to(device)).backward()
    assert leaf.grad is not None
    assert leaf.grad.is_contiguous(memory_format=torch.channels_last)


def test_no_graph_where_none_is_needed(device: torch.device) -> None:
    case = get_case("image_d16")
    x, labels = case.embeddings.to(device), case.labels.to(device)
    with_graph = discriminative_loss(case.leaf(device), labels)
    assert with_graph.requires_grad
    without = discriminative_loss(x, labels)
    assert not without.requires_grad
    with torch.no_grad():
        assert not discriminative_loss(case.leaf(device), labels).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(discriminative_loss(x, labels), with_graph.detach())
    assert torch.equal(without, with_graph.detach())


def _largest_allocation(device: torch.device, function: Callable[[], Any]) -> tuple[Any, int]:
    """What ``function`` returns, and the bytes of its largest tensor (on CUDA, of all together)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        return result, torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        result = function()
    events = profile.profiler.kineto_results.events()
    return result, max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("name", ["long_d8", "image_d16", "aligned_d32"])
def test_what_was_saved_may_lie_at_any_address(device: torch.device, name: str) -> None:
    """Hooks on saved tensors may pack them into one buffer, say."""
    case = get_case(name)
    unpacked = []

    def misaligned(saved: Tensor) -> Tensor:
        unpacked.append(LAYOUTS["misaligned"](saved))
        return unpacked[-1]

    x = case.embeddings.to(device, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, misaligned):
        assert_within_budget(case, run(*FUNCTIONS, case, x))
    assert any(saved.dtype == torch.float32 and saved.data_ptr() % 16 for saved in unpacked)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_a_gradient_is_as_large_as_the_embeddings(
    device: torch.device, dtype: torch.dtype, layout: str
) -> None:
    labels = (torch.arange(4096, device=device) // 600).reshape(2, 32, 64)
    x = LAYOUTS[layout](torch.randn(2, 32, 32, 64, device=device).to(dtype))
    x.requires_grad_()
    loss, largest = _largest_allocation(
        device, lambda: discriminative_loss(x, labels, max_instances=7)
    )
    assert 0 < largest < x.nbytes / 2
    with torch.no_grad():
        _, largest = _largest_allocation(
            device, lambda: discriminative_loss(x, labels, max_instances=7)
        )
    assert 0 < largest < x.nbytes / 2
    _, largest = _largest_allocation(device, lambda: torch.autograd.grad(loss, x))
    assert x.nbytes <= largest < 1.5 * x.nbytes


# --- finite differences ---------------------------------------------------------------------------


def _small(norm: int, packed: bool = False) -> Case:
    """A case for finite differences: second order needs every pixel off the kinks."""
    labels = torch.tensor([[0, 1, 1, 3, 3, 3, 2, 2, 2, 2], [1, 1, 0, 0, 2, 2, 2, 2, 0, 0]])
    x = clustered_embeddings(labels, 3, seed=1, norm=norm, dtype=torch.float64)
    options = {"norm": norm, "ignore_label": 0, "alpha": 0.7, "beta": 1.3, "gamma": 0.2}
    if packed:
        x, labels = x.movedim(1, -1).reshape(20, 3), labels.reshape(20)
        return Case(x, labels, options, torch.tensor([0, 7, 7, 20]))
    return Case(x, labels, options)


def _public(case: Case, device: torch.device) -> Callable[[Tensor], tuple[Tensor, ...]]:
    labels, options = case.labels.to(device), {**case.options, "max_instances": 4}
    options.update(reduction="none", return_terms=True)
    if case.offsets is None:
        return lambda x: tuple(discriminative_loss(x, labels, **options))
    offsets = case.offsets.to(device)
    return lambda x: tuple(discriminative_loss_packed(x, labels, offsets, **options))


def _function(case: Case, device: torch.device) -> Callable[[Tensor], tuple[Tensor, ...]]:
    labels = case.labels.to(device)
    offsets = None if case.offsets is None else case.offsets.to(device)
    defaults = {"delta_var": 0.5, "delta_dist": 1.5, "alpha": 1.0, "beta": 1.0, "gamma": 0.001}
    numbers = [case.options.get(name, default) for name, default in defaults.items()]
    norm, ignored = case.options["norm"], [case.options["ignore_label"]]
    apply = DiscriminativeLossFunction.apply
    return lambda x: tuple(apply(x, labels, offsets, 4, [*numbers, norm], ignored)[:4])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("door", [_public, _function])
def test_gradcheck_of_loss_and_terms(
    device: torch.device, door: Any, norm: int, packed: bool
) -> None:
    case = _small(norm, packed)
    x = case.leaf(device)
    assert torch.autograd.gradcheck(door(case, device), x)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("door", [_public, _function])
def test_gradgradcheck_of_loss_and_terms(
    device: torch.device, door: Any, norm: int, packed: bool
) -> None:
    case = _small(norm, packed)
    x = case.leaf(device)
    assert torch.autograd.gradgradcheck(door(case, device), x, fast_mode=True)


def test_the_scalar_of_one_image_is_differentiated_twice(device: torch.device) -> None:
    """It is a result of the op itself: no other op stands between it and the embeddings."""
    x = _small(2, False).embeddings[:1].to(device).requires_grad_()
    labels = _small(2, False).labels[:1].to(device)

    def loss(x: Tensor) -> Tensor:
        return discriminative_loss(x, labels, max_instances=8)

    node: Any = loss(x).grad_fn
    assert node.next_functions[0][0].variable is x
    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_penalty_in_every_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Second derivatives reach the embeddings beside the first, through the public function."""
    case = get_case("image_d16")
    x = case.leaf(device, dtype)
    found = []
    for function in (discriminative_loss, reference.discriminative_loss):
        loss: Any = function(x, case.labels.to(device))
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        penalty = 50 * grad.to(loss.dtype).square().sum()
        found.append(torch.autograd.grad(loss + penalty, x)[0].double())
        first = grad.detach().double()
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5}.get(dtype, 0.05)
    assert (found[0] - found[1]).abs().max() <= tolerance * found[1].abs().max()
    assert (found[0] - first).abs().max() > 0.01 * first.abs().max()


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("name", ["zero_embeddings", "equal_means", "zero_mean", "single_pixels"])
def test_second_derivatives_where_the_norm_has_none(
    device: torch.device, name: str, norm: int
) -> None:
    """There the norm counts as constant: finite, and the reference's numbers."""
    case = get_case(name)
    options = {"norm": norm, "delta_var": 0.0, "gamma": 1.0}
    found = []
    for function in (discriminative_loss, reference.discriminative_loss):
        x = case.leaf(device)
        loss: Any = function(x, case.labels.to(device), **options)
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        direction = torch.linspace(-1, 1, grad.numel(), dtype=grad.dtype, device=device)
        found.append(torch.autograd.grad(grad.flatten() @ direction, x)[0])
    assert found[0].isfinite().all()
    torch.testing.assert_close(*found)


# --- half gradients -------------------------------------------------------------------------------


def test_overflow_of_a_half_gradient_is_infinite(device: torch.device) -> None:
    """Never a clamp: GradScaler looks for the infinity."""
    x = get_case("image_d16").leaf(device, torch.float16)
    loss = discriminative_loss(x, get_case("image_d16").labels.to(device))
    (grad,) = torch.autograd.grad(loss, x, torch.full_like(loss, 1e9))
    assert not grad.isnan().any()
    largest = expected(get_case("image_d16"), torch.float16, "loss")[0].grad[0]
    above = torch.from_numpy(abs(largest) * 1e9 / 2 > 70000).to(device)
    assert above.any()
    assert grad[0][above].isinf().all()


@pytest.mark.parametrize("dtype", HALF)
def test_upstream_multiplies_before_the_one_rounding(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Scaled by 2^16, as GradScaler does, no gradient is lost that float16 alone would lose."""
    case = get_case("volume_d8")
    options = {"alpha": 1e-6, "beta": 1e-6, "gamma": 1e-9}
    x = case.leaf(device, dtype)
    loss = discriminative_loss(x, case.labels.to(device), **options)
    (grad,) = torch.autograd.grad(loss, x, torch.full_like(loss, 65536.0))
    truth = expected(Case(case.embeddings, case.labels, options), dtype, "loss")[0].grad * 65536
    assert abs(truth).max() < 0.01
    error = (grad.double().cpu() - torch.from_numpy(truth)).abs()
    ulp = torch.finfo(dtype).eps * abs(truth).clip(torch.finfo(dtype).tiny)
    assert (error <= torch.from_numpy(ulp) + 1e-6 * abs(truth).max()).all()
