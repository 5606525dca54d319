"""How far a result may lie from the float64 oracle, and the running of one call to judge it: in
which dtypes and memory layouts, with which upstream gradients.

Errors are relative to |value|, for gradients to the largest |gradient| of the image:

* a term is judged beside the loss it is part of: relative to the larger of the two;
* float64: at most 1e-12;
* else at most twice the error the plain PyTorch reference makes in the accumulate type (float32;
  half inputs are exact in it) plus 4 eps of that type;
* a half gradient may add one unit in the last place of its own dtype;
* the kink band: where a derivative jumps (a sign for norm 1, the direction of a vector near 0) and
  the data lies nearer to the jump than rounding can tell, both sides are right. An element in the
  band may be off by the jump, and the pixels of its instance by what their mean feels of it: the
  oracle's slack. The hinges are squared, so their derivative is continuous where they open and
  they need no band. Exactly on a kink there is one right answer and no slack.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discloss_cuda import reference

from .cases import Case
from .oracle import Array, BatchResult, Options, Upstream, batch_loss, packed_loss

TERMS = ("loss", "variance", "distance", "regularization")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, of the loss and of its terms."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _misaligned(x: Tensor) -> Tensor:
    """The same strides one element into a storage: no address is a multiple of 16 bytes."""
    storage = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return storage[1:].as_strided(x.shape, x.stride()).copy_(x)


def _padded(x: Tensor, before: int = 1, behind: int = 2) -> Tensor:
    """Cut out of something with a longer last axis: the axes do not merge into one."""
    beside = torch.nan if x.is_floating_point() else 77
    width = before + x.shape[-1] + behind
    around = torch.full((*x.shape[:-1], width), beside, dtype=x.dtype, device=x.device)
    around[..., before : width - behind] = x
    return around[..., before : width - behind]


def _cropped_channels_last(x: Tensor) -> Tensor:
    """Cut out of wider images: read from a copy, channels first; the gradient is channels-last."""
    rows = torch.nn.functional.pad(x.movedim(1, -1), (0, 0, 1, 2), value=torch.nan)
    return rows[..., 1:-2, :].movedim(-1, 1)


def _aligned_lines(x: Tensor) -> Tensor:
    """Lines begin at multiples of 64 elements and end anywhere: a vector there reads NaN."""
    return _padded(x, 0, 64 - x.shape[-1] % 64)


def _odd_images(x: Tensor) -> Tensor:
    """Images, in themselves contiguous, an odd number of elements apart."""
    return _padded(x.flatten(1), 0, 1 + x[:1].numel() % 2).unflatten(1, x.shape[1:])


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,
    "misaligned": lambda x: _misaligned(x.contiguous()),
    "channels_last_misaligned": lambda x: _misaligned(_channels_last(x)),
    "padded": _padded,
    "aligned_lines": _aligned_lines,
    "aligned_channels": lambda x: _aligned_lines(x.movedim(1, -1)).movedim(-1, 1),
    "odd_images": _odd_images,
    "odd_images_channels_last": lambda x: _odd_images(x.movedim(1, -1)).movedim(-1, 1),
    "cropped_channels_last": _cropped_channels_last,
    "transposed": _transposed,
}


@functools.cache
def upstream(images: int, kind: str) -> Tensor:
    """What flows back into loss and terms, ``[4, B]`` float64, of few bits.

    "loss": 1 into the loss of each image; "mixed": another number into each of all, with strides.
    """
    if kind == "loss":
        return torch.tensor([1.0, 0.0, 0.0, 0.0]).double()[:, None].expand(4, images)
    number = torch.arange(4 * images).reshape(4, images)
    return (number * 7 % 13 - 4.0).double().t().contiguous().t() / 4


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a call gave: loss and terms ``[B]``, and the gradient."""

    terms: tuple[Tensor, ...]
    grad: Tensor

    def __post_init__(self) -> None:
        assert all(term.dtype == accumulate_dtype(self.grad.dtype) for term in self.terms)


def run(
    dense: Callable[..., Any],
    packed: Callable[..., Any],
    case: Case,
    embeddings: Tensor,
    kind: str = "loss",
    **more: Any,
) -> Outcome:
    """Call ``dense`` or ``packed``, whichever the case is for, with the case's labels and options.

    ``embeddings`` are the case's, in the dtype, layout and device under test.
    """
    x = embeddings.detach().requires_grad_()
    device = x.device
    options = {"reduction": "none", "return_terms": True, **case.options, **more}
    if case.offsets is None:
        terms = dense(x, case.labels.to(device), **options)
    else:
        terms = packed(x, case.labels.to(device), case.offsets.to(device), **options)
    weights = upstream(case.images, kind).to(device, terms[0].dtype)
    (grad,) = torch.autograd.grad(terms, x, list(weights))
    return Outcome(tuple(term.detach() for term in terms), grad)


@functools.cache
def expected(case: Case, dtype: torch.dtype, kind: str) -> tuple[BatchResult, Outcome]:
    """The oracle's answer for the embeddings rounded to ``dtype``, and the reference's."""
    rounded = case.embeddings.to(dtype)
    x = rounded.double().numpy()
    names = set(Options.__dataclass_fields__)
    options = Options(**{k: v for k, v in case.options.items() if k in names})
    weights = [Upstream(*column.tolist()) for column in upstream(case.images, kind).t()]
    labels = case.labels.numpy()
    eps = torch.finfo(accumulate_dtype(dtype)).eps
    resolution = [8 * eps * np.abs(x[rows]).max(initial=0.0) for rows in _images(case)]
    if case.offsets is None:
        oracle = batch_loss(x, labels, options, weights, resolution)
    else:
        oracle = packed_loss(x, labels, case.offsets.tolist(), options, weights, resolution)
    working = rounded.to(accumulate_dtype(dtype))
    functions = reference.discriminative_loss, reference.discriminative_loss_packed
    return oracle, run(*functions, case, working, kind)


def assert_within_budget(
    case: Case, outcome: Outcome, kind: str = "loss", layout: str = "one layout"
) -> None:
    """Loss, terms and gradient of ``outcome`` against the oracle; ``layout`` is for the message."""
    dtype = outcome.grad.dtype
    oracle, naive = expected(case, dtype, kind)
    for index, name in enumerate(TERMS):
        truth = getattr(oracle, name)
        size = np.maximum(np.abs(truth), np.abs(oracle.loss))
        allowed = _allowed(dtype, size, np.abs(_array(naive.terms[index]) - truth))
        _assert_close(f"{layout}: {name}", _array(outcome.terms[index]), truth, allowed)

    ours, reference_grad = _array(outcome.grad), _array(naive.grad)
    for number, rows in enumerate(_images(case)):
        truth, slack = oracle.grad[rows], oracle.slack[rows]
        largest = np.abs(truth).max(initial=0.0)
        error = (np.abs(reference_grad[rows] - truth) - slack).max(initial=0.0)
        allowed = _allowed(dtype, largest, error) + slack
        if dtype in HALF:
            allowed = allowed + _ulp(truth, dtype)
        _assert_close(f"{layout}: gradient of image {number}", ours[rows], truth, allowed)


def _allowed(dtype: torch.dtype, size: Any, reference_error: Any) -> Any:
    if dtype == torch.float64:
        return 1e-12 * size
    return 2 * reference_error + 4 * torch.finfo(torch.float32).eps * size


def _ulp(value: Array, dtype: torch.dtype) -> Array:
    """Distance of neighbouring numbers of ``dtype`` around ``value``."""
    info = torch.finfo(dtype)
    return np.asarray(np.exp2(np.floor(np.log2(np.maximum(np.abs(value), info.tiny)))) * info.eps)


def _assert_close(what: str, ours: Array, truth: Array, allowed: Array) -> None:
    assert ours.shape == truth.shape, f"{what}: shape {ours.shape}, expected {truth.shape}"
    if ours.size == 0:
        return
    assert np.isfinite(ours).all(), f"{what}: not finite"
    error = np.abs(ours - truth)
    allowed = np.broadcast_to(allowed, error.shape)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), (
        f"{what}: got {ours[worst]!r}, expected {truth[worst]!r} at {worst}; "
        f"error {error[worst]:.3g}, allowed {allowed[worst]:.3g}, "
        f"{(error > allowed).mean():.1%} of the elements are off"
    )


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()


def _images(case: Case) -> list[Any]:
    """Where each image lies in the embeddings and in their gradient."""
    if case.offsets is None:
        return list(range(case.images))
    bounds = case.offsets.tolist()
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
