"""The public interface: what can be passed, by which name, and what comes back."""

from __future__ import annotations

import copy
import fractions
import inspect
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.op_calls import OpCalls
from torch import Tensor

import discloss_cuda
from discloss_cuda import (
    DiscriminativeLoss,
    DiscriminativeLossTerms,
    _ops,
    discriminative_loss,
    discriminative_loss_packed,
    reference,
)

DEFAULTS: dict[str, Any] = {
    "delta_var": 0.5,
    "delta_dist": 1.5,
    "alpha": 1.0,
    "beta": 1.0,
    "gamma": 0.001,
    "norm": 2,
    "ignore_label": None,
    "max_instances": None,
    "reduction": "mean",
    "return_terms": False,
}

# What the reference does not have.
SHARDED: dict[str, Any] = {"process_group": None, "grad_scale": "exact"}

# A value other than the default for every keyword.
OTHERS: dict[str, Any] = {
    "delta_var": 0.25,
    "delta_dist": 2.0,
    "alpha": 2.0,
    "beta": 0.5,
    "gamma": 0.1,
    "norm": 1,
    "ignore_label": 0,
    "max_instances": 7,
    "reduction": "none",
    "return_terms": True,
}


@pytest.fixture
def problem(device: torch.device) -> tuple[Tensor, Tensor]:
    """``[3, 5, 4, 6]`` embeddings that require a gradient, and labels with ids 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    embeddings = 2 * torch.randn(3, 5, 4, 6, generator=generator)
    labels = torch.randint(0, 4, (3, 4, 6), generator=generator)
    return embeddings.to(device).requires_grad_(), labels.to(device)


def keywords(function: Callable[..., object]) -> dict[str, Any]:
    """Name and default of every keyword-only parameter."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def positional(function: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


# --- signatures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        (discriminative_loss, DEFAULTS | SHARDED),
        (DiscriminativeLoss, DEFAULTS | SHARDED),
        (reference.discriminative_loss, DEFAULTS),
    ],
)
def test_keywords_and_defaults(function: Callable[..., object], defaults: dict[str, Any]) -> None:
    assert keywords(function) == defaults
    assert list(keywords(function)) == list(defaults)


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        (discriminative_loss_packed, DEFAULTS | SHARDED),
        (reference.discriminative_loss_packed, DEFAULTS),
    ],
)
def test_keywords_and_defaults_packed(
    function: Callable[..., object], defaults: dict[str, Any]
) -> None:
    assert keywords(function) == {"batch": None, "batch_size": None, **defaults}
    assert positional(function) == ["embeddings", "labels", "offsets"]


def test_positional_arguments() -> None:
    tensors = ["embeddings", "labels"]
    assert positional(discriminative_loss) == tensors
    assert positional(reference.discriminative_loss) == tensors
    assert positional(DiscriminativeLoss.forward) == ["self", *tensors]
    assert positional(DiscriminativeLoss) == []


def test_annotations_are_those_of_the_reference() -> None:
    for name in ("discriminative_loss", "discriminative_loss_packed"):
        compiled = inspect.signature(getattr(discloss_cuda, name)).parameters
        plain = inspect.signature(getattr(reference, name)).parameters
        assert {p: compiled[p].annotation for p in compiled if p not in {*SHARDED, "unknown"}} == {
            p: plain[p].annotation for p in plain
        }


def test_options_are_keywords_only(problem: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(TypeError, match="positional"):
        discriminative_loss(*problem, 0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        DiscriminativeLoss(0.5)  # type: ignore[call-arg]


def test_exports() -> None:
    assert sorted(discloss_cuda.__all__) == list(discloss_cuda.__all__)
    for name in discloss_cuda.__all__:
        assert inspect.getdoc(getattr(discloss_cuda, name)), name


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_dtype_and_shape(
    dtype: torch.dtype, expected: torch.dtype, reduction: str, problem: tuple[Tensor, Tensor]
) -> None:
    embeddings, labels = problem
    leaf = embeddings.detach().to(dtype).requires_grad_()
    terms = discriminative_loss(leaf, labels, reduction=reduction, return_terms=True)
    for term in terms:
        assert term.dtype == expected
        assert term.shape == ((3,) if reduction == "none" else ())
        assert term.device == leaf.device
        assert term.requires_grad
    (gradient,) = torch.autograd.grad(terms.loss.sum(), leaf)
    assert gradient.dtype == dtype
    assert gradient.shape == leaf.shape


def test_terms(problem: tuple[Tensor, Tensor]) -> None:
    options: dict[str, Any] = {"alpha": 2.0, "beta": 0.5, "gamma": 0.25, "ignore_label": 0}
    terms = discriminative_loss(*problem, **options, return_terms=True)
    assert type(terms) is DiscriminativeLossTerms
    assert terms._fields == ("loss", "variance", "distance", "regularization")
    weighted = 2.0 * terms.variance + 0.5 * terms.distance + 0.25 * terms.regularization
    torch.testing.assert_close(terms.loss, weighted)
    torch.testing.assert_close(terms.loss, discriminative_loss(*problem, **options), rtol=0, atol=0)
    assert all(term.item() > 0 for term in terms)


def test_terms_without_weight(problem: tuple[Tensor, Tensor]) -> None:
    weighted = discriminative_loss(*problem, return_terms=True)
    unweighted = discriminative_loss(*problem, alpha=0, beta=0, gamma=0, return_terms=True)
    assert unweighted.loss.item() == 0
    for a, b in zip(weighted[1:], unweighted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_reduction(problem: tuple[Tensor, Tensor]) -> None:
    each = discriminative_loss(*problem, reduction="none", return_terms=True)
    for reduction, reduce in (("mean", Tensor.mean), ("sum", Tensor.sum)):
        reduced = discriminative_loss(*problem, reduction=reduction, return_terms=True)
        for a, b in zip(reduced, each, strict=True):
            torch.testing.assert_close(a, reduce(b))


def test_images_are_independent(problem: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = problem
    each = discriminative_loss(embeddings, labels, reduction="none")
    for b in range(3):
        alone = discriminative_loss(embeddings[b : b + 1], labels[b : b + 1])
        torch.testing.assert_close(each[b], alone)


@pytest.mark.parametrize("shape", [(3, 5, 24), (3, 5, 4, 6), (3, 1, 4, 6), (3, 5, 4, 3, 2)])
@pytest.mark.parametrize("max_instances", [None, 4])
def test_labels_with_a_channel_axis(
    shape: tuple[int, ...], max_instances: int | None, problem: tuple[Tensor, Tensor]
) -> None:
    """``[B, 1, *spatial]``, contiguous or one channel of several."""
    x = problem[0].detach().flatten()[: math.prod(shape)].reshape(shape).requires_grad_()
    labels = problem[1].reshape(shape[0], *shape[2:])
    options: dict[str, Any] = {"ignore_label": 0, "max_instances": max_instances}
    expected = discriminative_loss(x, labels, **options)
    with_channel = torch.stack([labels, labels + 1], 1)[:, :1]
    for given in (labels.unsqueeze(1), with_channel):
        for function in (discriminative_loss, DiscriminativeLoss(**options)):
            keywords = options if function is discriminative_loss else {}
            loss = function(x, given, **keywords)
            assert torch.equal(loss, expected)
        assert function(x, given).grad_fn is not None
        torch.testing.assert_close(reference.discriminative_loss(x, given, **options), expected)


def test_a_channel_axis_costs_no_copy_of_the_labels(problem: tuple[Tensor, Tensor]) -> None:
    labels = problem[1].unsqueeze(1)
    with OpCalls(_ops.current().forward) as op:
        discriminative_loss(problem[0], labels, max_instances=4)
    ((_, given, *_),) = op.calls
    assert given.shape == (3, 4, 6)
    assert given.data_ptr() == labels.data_ptr()


def test_packed_by_offsets_and_by_batch(problem: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = problem
    points = embeddings.detach().movedim(1, -1).reshape(-1, 5)
    ids = labels.reshape(-1)
    device = points.device
    offsets = torch.tensor([0, 24, 24, 60, 72], device=device)
    batch = torch.tensor([0] * 24 + [2] * 36 + [3] * 12, device=device)
    options: dict[str, Any] = {"reduction": "none", "ignore_label": 0}
    by_offsets = discriminative_loss_packed(points, ids, offsets, **options)
    assert by_offsets.shape == (4,)
    assert by_offsets[1].item() == 0
    for batch_size in (None, 4):
        by_batch = discriminative_loss_packed(
            points, ids, batch=batch, batch_size=batch_size, **options
        )
        torch.testing.assert_close(by_batch, by_offsets, rtol=0, atol=0)
    dense = discriminative_loss(embeddings, labels, **options)
    torch.testing.assert_close(by_offsets[0], dense[0])
    more = discriminative_loss_packed(points, ids, batch=batch, batch_size=6, **options)
    assert more.shape == (6,)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("as_given", "plain"),
    [
        ({"delta_var": np.float32(0.25)}, {"delta_var": 0.25}),
        ({"delta_dist": np.float64(2.5)}, {"delta_dist": 2.5}),
        ({"alpha": 2}, {"alpha": 2.0}),
        ({"beta": fractions.Fraction(1, 2)}, {"beta": 0.5}),
        ({"gamma": np.int64(3)}, {"gamma": 3.0}),
        ({"norm": np.int64(1)}, {"norm": 1}),
        ({"norm": 1.0}, {"norm": 1}),
        ({"ignore_label": np.int16(2)}, {"ignore_label": 2}),
        ({"ignore_label": [2]}, {"ignore_label": 2}),
        ({"ignore_label": (0, np.uint8(2))}, {"ignore_label": [0, 2]}),
        ({"ignore_label": {2, 0}}, {"ignore_label": [0, 2]}),
        ({"ignore_label": frozenset({0, 2})}, {"ignore_label": [0, 2]}),
        ({"ignore_label": range(2)}, {"ignore_label": [0, 1]}),
        ({"ignore_label": []}, {"ignore_label": None}),
        ({"ignore_label": [2, 2]}, {"ignore_label": 2}),
        ({"max_instances": np.int64(4)}, {"max_instances": 4}),
    ],
    ids=lambda options: f"{options!r}".replace(" ", ""),
)
def test_numbers_of_any_kind(
    as_given: dict[str, Any], plain: dict[str, Any], problem: tuple[Tensor, Tensor]
) -> None:
    expected = discriminative_loss(*problem, **plain)
    torch.testing.assert_close(discriminative_loss(*problem, **as_given), expected, rtol=0, atol=0)
    torch.testing.assert_close(DiscriminativeLoss(**as_given)(*problem), expected, rtol=0, atol=0)


def test_max_instances_may_be_larger_than_needed(problem: tuple[Tensor, Tensor]) -> None:
    needed = discriminative_loss(*problem)
    for max_instances in (4, 5, 64):
        given = discriminative_loss(*problem, max_instances=max_instances)
        torch.testing.assert_close(given, needed, rtol=0, atol=0)


# --- module ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFAULTS)
def test_module_is_the_function(name: str, problem: tuple[Tensor, Tensor]) -> None:
    option = {name: OTHERS[name]}
    criterion = DiscriminativeLoss(**option)
    assert getattr(criterion, name) == OTHERS[name]
    results, expected = criterion(*problem), discriminative_loss(*problem, **option)
    assert type(results) is type(expected)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)


def test_repr() -> None:
    assert repr(DiscriminativeLoss()) == (
        "DiscriminativeLoss(delta_var=0.5, delta_dist=1.5, alpha=1.0, beta=1.0, gamma=0.001, "
        "norm=2, ignore_label=None, max_instances=None, reduction='mean', return_terms=False, "
        "process_group=None, grad_scale='exact')"
    )
    text = repr(DiscriminativeLoss(**OTHERS))
    assert repr(eval(text)) == text
    assert keywords_of(text) == OTHERS | SHARDED


def keywords_of(text: str) -> dict[str, Any]:
    names = text.removeprefix("DiscriminativeLoss")
    found: dict[str, Any] = eval(f"dict{names}")
    return found


def saved_and_loaded(criterion: DiscriminativeLoss) -> Any:
    file = io.BytesIO()
    torch.save(criterion, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), saved_and_loaded],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_module_can_be_copied(
    duplicate: Callable[[DiscriminativeLoss], Any], problem: tuple[Tensor, Tensor]
) -> None:
    criterion = DiscriminativeLoss(**{**OTHERS, "return_terms": False})
    twin = duplicate(criterion)
    assert repr(twin) == repr(criterion)
    torch.testing.assert_close(twin(*problem), criterion(*problem), rtol=0, atol=0)


def test_module_has_no_state() -> None:
    criterion = DiscriminativeLoss()
    assert criterion.state_dict() == {}
    assert list(criterion.parameters()) == []
    assert list(criterion.buffers()) == []
    criterion.load_state_dict({})
    assert criterion.half().eval().train() is criterion


def test_terms_can_be_pickled(problem: tuple[Tensor, Tensor]) -> None:
    terms = DiscriminativeLossTerms(
        *(term.detach() for term in discriminative_loss(*problem, return_terms=True))
    )
    twin = pickle.loads(pickle.dumps(terms))
    assert type(twin) is DiscriminativeLossTerms
    torch.testing.assert_close(twin, terms, rtol=0, atol=0)


def test_a_result_names_its_gradient() -> None:
    """By the binding of the package; that of the emulated ops is another."""
    x = torch.randn(2, 3, 8, requires_grad=True)
    labels = torch.zeros(2, 8, dtype=torch.int64)
    loss = discriminative_loss(x, labels, reduction="none")
    assert repr(loss).endswith("grad_fn=<DiscriminativeLossBackward>)")
    assert repr(loss.grad_fn).startswith("<DiscriminativeLossBackward object at ")
