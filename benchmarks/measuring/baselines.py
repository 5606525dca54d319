"""What is measured: this package, its reference, and the best that PyTorch can do without it.

The baselines compute exactly the loss of the package, for whole batches at once. They are favoured
in one respect: ids are already consecutive slots (`Problem.slots`, `Problem.flat`), made outside of
the timer, while the package and its reference start from the labels as they come.

Shapes: `x` is `[B, D, *spatial]`, or `[N_total, D]` for packed clouds; a *bin* is a slot of one
image, ignored pixels having one of their own that is weighed with 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import discloss_cuda
from discloss_cuda import reference

from .workloads import Problem

DELTA_VAR, DELTA_DIST, ALPHA, BETA, GAMMA = 0.5, 1.5, 1.0, 1.0, 0.001  # the package's defaults

Loss = Callable[[Tensor], Tensor]  # embeddings -> scalar


class Formulation(Protocol):
    """One way to write the loss in PyTorch; `fused` for a compiler, which fuses what it can."""

    def __call__(self, x: Tensor, problem: Problem, *, fused: bool) -> Tensor: ...


def scatter_channels_first(x: Tensor, problem: Problem, *, fused: bool) -> Tensor:
    """Means by one `scatter_add` over the pixels, the layout left as it is."""
    if problem.offsets is None:
        x, slots, images = _wide(x).flatten(2), problem.slots, problem.images
    else:  # all clouds as one image of B * bins bins
        x, slots, images = _wide(x).t()[None], problem.flat[None], 1
    index = slots[:, None].expand_as(x)  # [B, D, N]
    counts = _counts(x, problem, fused)  # [B, bins]
    sums = x.new_zeros(*x.shape[:2], counts.numel() // images).scatter_add(2, index, x)
    means = sums / counts.view(images, 1, -1).clamp(min=1)
    hinge = _pull_hinge(x - means.gather(2, index), 1)
    return _loss(hinge, means.transpose(1, 2).reshape(*counts.shape, -1), counts, problem, fused)


def index_channels_first(x: Tensor, problem: Problem, *, fused: bool) -> Tensor:
    """Means by `index_add` along the rows of `[D, B * N]`."""
    x = _wide(x)
    x = x.flatten(2).transpose(0, 1).flatten(1) if problem.offsets is None else x.t().contiguous()
    counts = _counts(x, problem, fused)
    sums = x.new_zeros(x.shape[0], counts.numel()).index_add(1, problem.flat, x)
    means = sums / counts.view(-1).clamp(min=1)
    hinge = _pull_hinge(x - means.index_select(1, problem.flat), 0)
    return _loss(hinge, means.t().reshape(*counts.shape, -1), counts, problem, fused)


def index_channels_last(x: Tensor, problem: Problem, *, fused: bool) -> Tensor:
    """Means by `index_add` of whole embeddings, `[B * N, D]`."""
    x = _wide(x)
    x = x.flatten(2).transpose(1, 2).flatten(0, 1) if problem.offsets is None else x
    counts = _counts(x, problem, fused)
    sums = x.new_zeros(counts.numel(), x.shape[1]).index_add(0, problem.flat, x)
    means = sums / counts.view(-1, 1).clamp(min=1)
    hinge = _pull_hinge(x - F.embedding(problem.flat, means), 1)
    return _loss(hinge, means.view(*counts.shape, -1), counts, problem, fused)


def one_hot_matmul(x: Tensor, problem: Problem, *, fused: bool) -> Tensor:
    """Means, and each pixel's mean, by matrix products with a one-hot matrix `[B, bins, N]`."""
    if problem.offsets is None:
        x, slots, bins = _wide(x).flatten(2), problem.slots, problem.bins
    else:  # as above
        x, slots, bins = _wide(x).t()[None], problem.flat[None], problem.images * problem.bins
    one_hot = (slots[:, None] == torch.arange(bins, device=x.device)[:, None]).to(x.dtype)
    counts = one_hot.sum(2)  # [B, bins]
    means = x @ one_hot.transpose(1, 2) / counts[:, None].clamp(min=1)  # [B, D, bins]
    hinge = _pull_hinge(x - means @ one_hot, 1)
    counts = counts.view(problem.images, problem.bins)
    return _loss(hinge, means.transpose(1, 2).reshape(*counts.shape, -1), counts, problem, fused)


def _wide(x: Tensor) -> Tensor:
    """Half precision is summed in float32, as the package does."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _counts(x: Tensor, problem: Problem, fused: bool) -> Tensor:
    """Pixels of each bin, `[B, bins]`."""
    size = problem.images * problem.bins
    if fused:  # bincount has a data-dependent shape, which would break the graph
        ones = x.new_ones(problem.flat.shape)
        counts = x.new_zeros(size).index_add(0, problem.flat, ones)
    else:
        counts = torch.bincount(problem.flat, minlength=size).to(x.dtype)
    return counts.view(problem.images, problem.bins)


def _pull_hinge(offset: Tensor, axis: int) -> Tensor:
    """`[|x_i - mu_k| - delta_var]_+^2` of each pixel."""
    return F.relu(torch.linalg.vector_norm(offset, dim=axis) - DELTA_VAR).square()


def _loss(
    hinge: Tensor,  # [B, N] or [B * N]
    means: Tensor,  # [B, bins, D]
    counts: Tensor,  # [B, bins]
    problem: Problem,
    fused: bool,
) -> Tensor:
    """What follows the means: the weighted pull, the push of all pairs, the regularization."""
    present = (counts > 0).to(means.dtype)
    if problem.ignore_label is not None:
        present = present * (torch.arange(problem.bins, device=means.device) < problem.instances)
    number = present.sum(1).clamp(min=1)  # [B]: K
    weight = present / (counts.clamp(min=1) * number[:, None])
    pull = (hinge.flatten() * weight.view(-1).index_select(0, problem.flat)).sum()
    if fused:  # the compiler keeps the differences of all pairs out of memory, cdist it cannot fuse
        between = torch.linalg.vector_norm(means[:, :, None] - means[:, None], dim=3)
    else:
        between = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    other = ~torch.eye(problem.bins, dtype=torch.bool, device=means.device)
    pair = present[:, :, None] * present[:, None] * other  # [B, bins, bins]
    push = (F.relu(2 * DELTA_DIST - between).square() * pair).sum((1, 2))
    push = push / (number * (number - 1)).clamp(min=1)
    length = (torch.linalg.vector_norm(means, dim=2) * present).sum(1) / number
    loss: Tensor = (ALPHA * pull + BETA * push.sum() + GAMMA * length.sum()) / problem.images
    return loss


@dataclass(frozen=True)
class Implementation:
    """Something to be checked and timed. Of each group only the fastest is timed at length."""

    name: str
    group: str
    make: Callable[[Problem], Loss]
    memory: Callable[[Problem], int] = lambda problem: 0  # estimate of what it needs, in bytes


def _ours(problem: Problem, *, count_given: bool) -> Loss:
    return partial(_call, discloss_cuda, problem, problem.instances if count_given else None)


def _reference(problem: Problem) -> Loss:
    return partial(_call, reference, problem, problem.instances)


def _call(package: ModuleType, problem: Problem, max_instances: int | None, x: Tensor) -> Tensor:
    """The public function, of the package or of its reference."""
    options = {"ignore_label": problem.ignore_label, "max_instances": max_instances}
    if problem.offsets is None:
        loss = package.discriminative_loss(x, problem.labels, **options)
    else:
        loss = package.discriminative_loss_packed(x, problem.labels, problem.offsets, **options)
    assert isinstance(loss, Tensor)
    return loss


def _eager(problem: Problem, *, formulation: Formulation) -> Loss:
    return partial(formulation, problem=problem, fused=False)


def _compiled(problem: Problem, *, formulation: Formulation, backend: str) -> Loss:
    compiled = torch.compile(formulation, backend=backend, dynamic=False, fullgraph=True)
    return partial(compiled, problem=problem, fused=True)


def _sizes(problem: Problem) -> tuple[int, int, int]:
    """Bytes of an embedding, of a value per pixel and bin, and of a value per pair of bins."""
    width = 8 if problem.embeddings.dtype == torch.float64 else 4
    pixels = problem.flat.numel()
    dense_bins = problem.bins * (1 if problem.offsets is None else problem.images)
    return (
        problem.embeddings.numel() * width,
        pixels * dense_bins * width,
        problem.images * problem.bins**2 * width,
    )


def _reference_memory(problem: Problem) -> int:
    embedding, _, pairs = _sizes(problem)
    channels = problem.embeddings.shape[1]
    return 7 * embedding + 4 * pairs * channels


def _baseline_memory(problem: Problem, *, embeddings: int, one_hots: int, pairs: int) -> int:
    embedding, one_hot, pair = _sizes(problem)
    return embeddings * embedding + one_hots * one_hot + pairs * pair


FORMULATIONS: dict[str, Formulation] = {
    "scatter": scatter_channels_first,
    "index-first": index_channels_first,
    "index-last": index_channels_last,
    "one-hot": one_hot_matmul,
}
COMPILED = ("scatter", "index-last", "one-hot")
COMPILED_QUICK = ("scatter",)


def implementations(*, quick: bool, backend: str = "inductor") -> list[Implementation]:
    """Everything to compare; `quick` leaves out what takes long to compile or adds little."""
    known = [Implementation("discloss_cuda", "discloss_cuda", partial(_ours, count_given=True))]
    if not quick:
        unknown = partial(_ours, count_given=False)
        name = "discloss_cuda (no K)"  # max_instances is not given: the number is found first
        known.append(Implementation(name, name, unknown))
    known.append(Implementation("reference", "reference", _reference, _reference_memory))
    for name, formulation in FORMULATIONS.items():
        one_hots = 2 if name == "one-hot" else 0
        memory = partial(_baseline_memory, embeddings=6, one_hots=one_hots, pairs=6)
        make = partial(_eager, formulation=formulation)
        known.append(Implementation(f"eager {name}", "eager", make, memory))
    for name in COMPILED_QUICK if quick else COMPILED:
        one_hots = 1 if name == "one-hot" else 0
        memory = partial(_baseline_memory, embeddings=4, one_hots=one_hots, pairs=4)
        make = partial(_compiled, formulation=FORMULATIONS[name], backend=backend)
        known.append(Implementation(f"compile {name}", "torch.compile", make, memory))
    return known
