"""What must hold for any input: invariances of the loss, and the agreement of its entrances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cases import INT64_MAX, INT64_MIN
from torch import Tensor

from discloss_cuda import discriminative_loss, discriminative_loss_packed

IGNORED = -7


@dataclass(frozen=True)
class Problem:
    """A dense float64 call."""

    x: Tensor  # [B, D, *spatial]
    labels: Tensor  # [B, *spatial] int64
    options: dict[str, Any]
    generator: torch.Generator  # for what a property needs to draw besides


@st.composite
def problems(draw: Callable[..., Any]) -> Problem:
    """Random sizes, ids and numbers. Values are normal draws: never on a kink but by rounding."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    batch, dim = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 8, 9, 16]))
    ids = draw(st.lists(st.integers(INT64_MIN, INT64_MAX), min_size=1, max_size=6, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    table = torch.tensor([*ids, IGNORED])
    labels = table[torch.randint(len(table), (batch, *shape), generator=generator)]
    x = torch.randn(batch, dim, *shape, generator=generator, dtype=torch.float64)
    options = {
        "delta_var": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "delta_dist": draw(st.sampled_from([0.2, 0.7, 1.5])),
        "gamma": draw(st.sampled_from([0.0, 0.001, 0.5])),
        "norm": draw(st.sampled_from([1, 2])),
        "ignore_label": IGNORED,
    }
    return Problem(x, labels, options, generator)


def outcome(
    device: torch.device, x: Tensor, labels: Tensor, *more: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Loss and terms ``[4, B]`` and the gradient of their weighted sum, on the CPU."""
    leaf = x.detach().to(device).requires_grad_()
    function = discriminative_loss_packed if more else discriminative_loss
    rest = [tensor.to(device) for tensor in (labels, *more)]
    terms = function(leaf, *rest, reduction="none", return_terms=True, **options)
    weights = torch.tensor([1.0, 0.5, -0.25, 2.0], dtype=torch.float64, device=device)
    stacked = torch.stack(list(terms))
    (grad,) = torch.autograd.grad(weights @ stacked.sum(1), leaf)
    return stacked.detach().cpu(), grad.cpu()


def assert_same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(a, b, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@given(problem=problems())
def test_ids_may_be_renamed(device: torch.device, problem: Problem) -> None:
    p = problem
    ids, number = torch.unique(p.labels, return_inverse=True)
    fresh = torch.randperm(1000, generator=p.generator)[: len(ids)] - 500
    fresh[fresh == IGNORED] = 1000
    fresh[ids == IGNORED] = IGNORED
    renamed = outcome(device, p.x, fresh[number], **p.options)
    assert_same(renamed, outcome(device, p.x, p.labels, **p.options))


@given(problem=problems())
def test_pixels_may_be_permuted(device: torch.device, problem: Problem) -> None:
    p = problem
    terms, grad = outcome(device, p.x, p.labels, **p.options)
    order = torch.randperm(p.labels[0].numel(), generator=p.generator)
    x, labels = p.x.flatten(2)[..., order], p.labels.flatten(1)[:, order]
    assert_same(outcome(device, x, labels, **p.options), (terms, grad.flatten(2)[..., order]))


@given(problem=problems())
def test_ignored_pixels_change_nothing(device: torch.device, problem: Problem) -> None:
    p = problem
    terms, grad = outcome(device, p.x, p.labels, **p.options)
    extra = torch.full((*p.x.shape[:-1], 3), torch.nan, dtype=torch.float64)
    labels = torch.cat([torch.full((*p.labels.shape[:-1], 3), IGNORED), p.labels], -1)
    added = outcome(device, torch.cat([extra, p.x], -1), labels, **p.options)
    assert torch.equal(added[1][..., :3], torch.zeros_like(extra))
    assert_same((added[0], added[1][..., 3:]), (terms, grad))
    assert torch.equal(grad * (p.labels == IGNORED)[:, None], torch.zeros_like(grad))


@given(problem=problems())
def test_a_batch_is_the_mean_of_its_images(device: torch.device, problem: Problem) -> None:
    p = problem
    terms, grad = outcome(device, p.x, p.labels, **p.options)
    alone = [
        outcome(device, p.x[b : b + 1], p.labels[b : b + 1], **p.options) for b in range(len(p.x))
    ]
    assert_same(
        (terms, grad), (torch.cat([t for t, _ in alone], 1), torch.cat([g for _, g in alone]))
    )
    mean = discriminative_loss(p.x.to(device), p.labels.to(device), **p.options)
    torch.testing.assert_close(mean.cpu(), terms[0].mean(), rtol=1e-12, atol=0)


@given(problem=problems())
def test_without_regularization_a_translation_changes_nothing(
    device: torch.device, problem: Problem
) -> None:
    p = problem
    options = {**p.options, "gamma": 0.0}
    shift = torch.randn(p.x.shape[1], generator=p.generator, dtype=torch.float64)
    shift = shift.reshape(-1, *[1] * (p.x.ndim - 2))

    def without(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.to(device).requires_grad_()
        terms = discriminative_loss(leaf, p.labels.to(device), return_terms=True, **options)
        (grad,) = torch.autograd.grad(terms.loss, leaf)
        return torch.stack(terms[:3]).detach().cpu(), grad.cpu()

    assert_same(without(p.x + shift), without(p.x.clone()))


@given(problem=problems())
def test_packed_is_dense(device: torch.device, problem: Problem) -> None:
    p = problem
    terms, grad = outcome(device, p.x, p.labels, **p.options)
    x = p.x.flatten(2).transpose(1, 2).reshape(-1, p.x.shape[1])
    offsets = torch.arange(len(p.x) + 1) * p.labels[0].numel()
    rows = grad.flatten(2).transpose(1, 2).reshape_as(x)
    assert_same(outcome(device, x, p.labels.flatten(), offsets, **p.options), (terms, rows))


@given(problem=problems())
def test_spatial_axes_may_be_flattened(device: torch.device, problem: Problem) -> None:
    p = problem
    terms, grad = outcome(device, p.x, p.labels, **p.options)
    flat = outcome(device, p.x.flatten(2), p.labels.flatten(1), **p.options)
    assert_same(flat, (terms, grad.flatten(2)))


@given(problem=problems())
def test_channels_last_is_contiguous(device: torch.device, problem: Problem) -> None:
    p = problem
    x = p.x.movedim(1, -1).contiguous().movedim(-1, 1)
    last = outcome(device, x, p.labels, **p.options)
    assert_same(last, outcome(device, p.x, p.labels, **p.options))


@given(problem=problems(), room=st.integers(0, 40))
def test_room_for_more_instances_changes_nothing(
    device: torch.device, problem: Problem, room: int
) -> None:
    p = problem
    roomy = outcome(device, p.x, p.labels, max_instances=6 + room, **p.options)
    assert_same(roomy, outcome(device, p.x, p.labels, **p.options))


@pytest.mark.parametrize("frames", [1, 3])
def test_a_clip_is_one_image_with_means_over_the_clip(device: torch.device, frames: int) -> None:
    """An instance that drifts from frame to frame must cost."""
    labels = torch.arange(2).repeat_interleave(8).reshape(1, 1, 16).expand(1, frames, 16)
    x = torch.zeros(1, 1, frames, 16, dtype=torch.float64) + 10.0 * labels[:, None]
    drift = x + 4.0 * torch.arange(frames).reshape(1, 1, frames, 1)
    terms = discriminative_loss(drift.to(device), labels.to(device), return_terms=True)
    assert terms.variance.item() == pytest.approx(0.0 if frames == 1 else 2 * 3.5**2 / 3)
