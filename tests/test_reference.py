"""The reference against the oracle, the oracle against finite differences, and what only the
reference promises: it runs without the extension, under every transform, to any order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.budget import DTYPES, assert_within_budget, run
from support.cases import DENSE, PACKED, get_case
from support.oracle import Options, Upstream, image_loss
from torch import Tensor

from discloss_cuda import reference

FUNCTIONS = (reference.discriminative_loss, reference.discriminative_loss_packed)


def test_a_value_worked_out_by_hand() -> None:
    # Instance 7: mean 1, |v| = 1, hinge 0.5; instance 3: mean 5, one pixel; distance 4 > 3.
    x = torch.tensor([[[0.0, 2.0, 5.0, 9.0]]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[7, 7, 3, 0]])
    terms = reference.discriminative_loss(x, labels, ignore_label=0, return_terms=True)
    assert [term.item() for term in terms] == [0.128, 0.125, 0.0, 3.0]
    (grad,) = torch.autograd.grad(terms.loss, x)
    torch.testing.assert_close(
        grad, torch.tensor([[[-0.24975, 0.25025, 0.0005, 0.0]]], dtype=torch.float64)
    )


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("term", ["loss", "variance", "distance", "regularization"])
def test_the_gradient_of_the_oracle_is_that_of_its_value(norm: int, term: str) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 20)) * 0.7
    ids = generator.integers(-1, 4, size=20).tolist()
    options = Options(
        norm=norm, ignore_label=-1, delta_var=0.4, alpha=0.7, beta=1.3, gamma=0.2, delta_dist=1.1
    )
    upstream = Upstream(**{"loss": 0.0, term: 1.0})
    grad = image_loss(x, ids, options, upstream).grad
    assert np.abs(grad).max() > 0.01
    step = 1e-6
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        values = [getattr(image_loss(y, ids, options), term) for y in (up, down)]
        assert abs((values[0] - values[1]) / (2 * step) - grad[index]) < 1e-8


@pytest.mark.parametrize("kind", ["loss", "mixed"])
@pytest.mark.parametrize("name", [*DENSE, *PACKED])
def test_every_case_against_the_oracle(name: str, kind: str) -> None:
    case = get_case(name)
    assert_within_budget(case, run(*FUNCTIONS, case, case.embeddings, kind), kind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_loss_and_gradient(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True)
    loss = reference.discriminative_loss(x, torch.arange(8).expand(2, 8) // 3)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype


def test_half_embeddings_are_upcast_first() -> None:
    x = torch.full((1, 2, 300), 512.0, dtype=torch.float16)  # a sum beyond 65504
    labels = torch.zeros(1, 300, dtype=torch.uint8)
    loss = reference.discriminative_loss(x, labels, gamma=1.0)
    assert loss.item() == pytest.approx(512 * 2**0.5, rel=1e-6)


@pytest.mark.parametrize("name", ["image_d16", "mixed_counts", "clouds_d3"])
def test_more_slots_than_instances_change_nothing(name: str) -> None:
    case = get_case(name)
    assert_within_budget(case, run(*FUNCTIONS, case, case.embeddings, max_instances=50))


def test_too_many_instances_name_the_image_and_its_count() -> None:
    labels = torch.tensor([[0, 0, 0], [3, 4, 5]])
    with pytest.raises(ValueError, match=r"max_instances: .* 2 .* got 3 in image 1"):
        reference.discriminative_loss(torch.zeros(2, 1, 3), labels, max_instances=2)
    with pytest.raises(ValueError, match=r"max_instances: .* 2 .* got 3 in image 1"):
        reference.discriminative_loss_packed(
            torch.zeros(6, 1), labels.reshape(-1), torch.tensor([0, 3, 6]), max_instances=2
        )


def test_offsets_and_batch_say_the_same() -> None:
    case = get_case("clouds_d3")
    assert case.offsets is not None
    batch = torch.repeat_interleave(case.offsets.diff())
    kwargs: dict[str, Any] = {"reduction": "none"}
    a = reference.discriminative_loss_packed(case.embeddings, case.labels, case.offsets, **kwargs)
    b = reference.discriminative_loss_packed(case.embeddings, case.labels, batch=batch, **kwargs)
    c = reference.discriminative_loss_packed(
        case.embeddings, case.labels, batch=batch, batch_size=7, **kwargs
    )
    assert torch.equal(a, b)
    assert torch.equal(c, torch.cat([a, a.new_zeros(2)]))


# --- slot_terms under transforms ------------------------------------------------------------------

SLOTS = torch.randint(-1, 4, (3, 2, 12), generator=torch.Generator().manual_seed(0))
X = torch.randn(
    3, 2, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
)  # three batches of two images


def slot_terms(x: Tensor, slots: Tensor, norm: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return reference.slot_terms(x, slots, 4, delta_var=0.5, delta_dist=1.5, norm=norm)


def total(x: Tensor, slots: Tensor, norm: int = 2) -> Tensor:
    return torch.stack(slot_terms(x, slots, norm)).sum()


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None)])
def test_vmap(in_dims: tuple[int, int | None]) -> None:
    slots = SLOTS if in_dims[1] == 0 else SLOTS[0]
    mapped = torch.func.vmap(slot_terms, in_dims)(X, slots)
    for i in range(3):
        one = slot_terms(X[i], SLOTS[i] if in_dims[1] == 0 else SLOTS[0])
        for a, b in zip(mapped, one, strict=True):
            torch.testing.assert_close(a[i], b)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's
@pytest.mark.parametrize("norm", [1, 2])
def test_forward_mode_agrees_with_backward_mode(norm: int) -> None:
    tangent = torch.randn_like(X[0])
    _, forward = torch.func.jvp(lambda x: total(x, SLOTS[0], norm), (X[0],), (tangent,))
    backward = torch.func.grad(total)(X[0], SLOTS[0], norm)
    torch.testing.assert_close(forward, (backward * tangent).sum())


@pytest.mark.parametrize("norm", [1, 2])
def test_gradcheck_to_second_order(norm: int) -> None:
    x = X[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: slot_terms(y, SLOTS[0], norm), x)
    assert torch.autograd.gradgradcheck(lambda y: slot_terms(y, SLOTS[0], norm), x)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("name", ["zero_embeddings", "equal_means", "zero_mean", "single_pixels"])
def test_second_derivatives_are_finite_where_the_norm_has_none(name: str, norm: int) -> None:
    case = get_case(name)
    x = case.embeddings.clone().requires_grad_()
    loss = reference.discriminative_loss(x, case.labels, norm=norm, delta_var=0.0, gamma=1.0)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad((grad * torch.ones_like(grad)).sum() + grad.square().sum(), x)
    assert second.isfinite().all()


def test_no_shape_depends_on_a_value() -> None:
    compiled = torch.compile(slot_terms, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(X[0], SLOTS[0]), slot_terms(X[0], SLOTS[0]), strict=True):
        torch.testing.assert_close(a, b)
    # Tensors on "meta" have no values: whatever asks for one raises.
    x, slots, offsets = X[0].to("meta"), SLOTS[0].to("meta"), torch.tensor([0, 5, 12]).to("meta")
    dense = slot_terms(x, slots)
    packed = reference.slot_terms(
        x[0].t(), slots[0], 4, offsets=offsets, delta_var=0.5, delta_dist=1.5, norm=2
    )
    assert [term.shape for term in (*dense, *packed)] == [(2,)] * 6


def test_it_does_not_need_the_extension() -> None:
    folder = str(Path(reference.__file__).parents[1])
    script = (
        "import sys, types; package = types.ModuleType('discloss_cuda'); "
        f"package.__path__ = [{folder!r}]; sys.modules['discloss_cuda'] = package; "
        "import discloss_cuda.reference; assert 'discloss_cuda._C' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
