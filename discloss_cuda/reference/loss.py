"""The discriminative loss in plain PyTorch, to be read beside the paper.

Source: De Brabandere, Neven, Van Gool, "Semantic Instance Segmentation with a Discriminative Loss
Function", arXiv 1708.02551, equations 1 to 4. Nothing here is optimised. It needs no compiled
extension, runs on every device, and may be differentiated as often as one likes.

Symbols: ``B`` images, ``D`` embedding dimension, ``P`` pixels of all images together, ``M`` slots
of an image (``max_instances``), ``K`` instances of an image, ``x_i`` the embedding of pixel i,
``mu_k`` the mean embedding of instance k, ``N_k`` its pixel count, ``[z]_+ = max(z, 0)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Literal, Unpack, overload

import torch
from torch import Tensor

from .._options import Options, PackedOptions
from ..terms import DiscriminativeLossTerms


@overload
def discriminative_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    return_terms: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def discriminative_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    return_terms: Literal[True],
    **options: Unpack[Options],
) -> DiscriminativeLossTerms: ...
@overload
def discriminative_loss(
    embeddings: Tensor, labels: Tensor, *, return_terms: bool, **options: Unpack[Options]
) -> Tensor | DiscriminativeLossTerms: ...
def discriminative_loss(
    embeddings: Tensor,  # [B, D, *spatial]
    labels: Tensor,  # [B, *spatial]
    *,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.001,
    norm: int = 2,
    ignore_label: int | Sequence[int] | None = None,
    max_instances: int | None = None,
    reduction: str = "mean",
    return_terms: bool = False,
) -> Tensor | DiscriminativeLossTerms:
    """Discriminative loss of a batch of images, volumes, clips or clouds of one size.

    Per image (eq. 4), ``L = alpha L_var + beta L_dist + gamma L_reg``; see :func:`slot_terms`.

    Args:
        embeddings: ``[B, D, *spatial]``, float16, bfloat16, float32 or float64.
        labels: ``[B, *spatial]`` or ``[B, 1, *spatial]``, bool, uint8, uint16 or a signed integer;
            ids compare as int64 values.
        delta_var: radius within which a pixel is not pulled to its mean.
        delta_dist: two means are pushed apart when closer than ``2 * delta_dist``.
        alpha: weight of the variance (pull) term.
        beta: weight of the distance (push) term.
        gamma: weight of the regularization term.
        norm: 2 (Euclidean) or 1.
        ignore_label: id or ids of the pixels to leave out. None: every id is an instance,
            background too.
        max_instances: most instances an image may have; None: as many as there are.
        reduction: "mean" or "sum" over the images, or "none" for ``[B]``.
        return_terms: also return the three unweighted terms.

    Returns:
        The loss, a scalar or ``[B]``, or :class:`DiscriminativeLossTerms`; float64 for float64
        embeddings, else float32.
    """
    slots = torch.full_like(labels, -1, dtype=torch.int64)
    counts = [_number_instances(labels[b], slots[b], ignore_label) for b in range(labels.shape[0])]
    terms = slot_terms(
        embeddings,
        slots,
        _check_counts(counts, max_instances),
        delta_var=delta_var,
        delta_dist=delta_dist,
        norm=norm,
    )
    return _weigh_and_reduce(*terms, alpha, beta, gamma, reduction, return_terms)


@overload
def discriminative_loss_packed(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None = None,
    *,
    return_terms: Literal[False] = False,
    **options: Unpack[PackedOptions],
) -> Tensor: ...
@overload
def discriminative_loss_packed(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None = None,
    *,
    return_terms: Literal[True],
    **options: Unpack[PackedOptions],
) -> DiscriminativeLossTerms: ...
@overload
def discriminative_loss_packed(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None = None,
    *,
    return_terms: bool,
    **options: Unpack[PackedOptions],
) -> Tensor | DiscriminativeLossTerms: ...
def discriminative_loss_packed(
    embeddings: Tensor,  # [N_total, D]
    labels: Tensor,  # [N_total]
    offsets: Tensor | None = None,  # [B + 1]
    *,
    batch: Tensor | None = None,  # [N_total]
    batch_size: int | None = None,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.001,
    norm: int = 2,
    ignore_label: int | Sequence[int] | None = None,
    max_instances: int | None = None,
    reduction: str = "mean",
    return_terms: bool = False,
) -> Tensor | DiscriminativeLossTerms:
    """Discriminative loss of ``B`` clouds of different sizes, one behind the other.

    Args:
        embeddings: ``[N_total, D]``, float16, bfloat16, float32 or float64.
        labels: ``[N_total]``, bool, uint8, uint16 or a signed integer.
        offsets: ``[B + 1]``, from 0 to N_total, not decreasing: cloud b is
            ``offsets[b]:offsets[b + 1]``. Give this or ``batch``.
        batch: ``[N_total]``, the cloud of each point, sorted.
        batch_size: number of clouds when ``batch`` is given; None: ``batch[-1] + 1``.

    The other arguments and the result are those of :func:`discriminative_loss`.
    """
    if (offsets is None) == (batch is None):
        raise ValueError("discriminative_loss_packed: expected exactly one of offsets and batch")
    if offsets is None:
        assert batch is not None
        offsets = _offsets_of_batch(batch, batch_size)
    slots = torch.full_like(labels, -1, dtype=torch.int64)
    bounds = offsets.tolist()
    counts = [
        _number_instances(labels[first:last], slots[first:last], ignore_label)
        for first, last in itertools.pairwise(bounds)
    ]
    terms = slot_terms(
        embeddings,
        slots,
        _check_counts(counts, max_instances),
        offsets=offsets,
        delta_var=delta_var,
        delta_dist=delta_dist,
        norm=norm,
    )
    return _weigh_and_reduce(*terms, alpha, beta, gamma, reduction, return_terms)


def slot_terms(
    embeddings: Tensor,  # [B, D, *spatial] or [N_total, D]
    slots: Tensor,  # [B, *spatial] or [N_total]
    max_instances: int,
    *,
    offsets: Tensor | None = None,  # [B + 1]
    delta_var: float,
    delta_dist: float,
    norm: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three unweighted terms of each image, where the instances of an image are numbered.

    Every shape depends on shapes and ``max_instances`` alone, never on a value, so this works
    under ``torch.compile``, ``torch.func`` and forward-mode differentiation. ::

        L_var  = 1/K      sum_k 1/N_k sum_{i in k} [ |x_i - mu_k| - delta_var ]_+^2      (eq. 1)
        L_dist = 1/(K(K-1))    sum_{a != b} [ 2 delta_dist - |mu_a - mu_b| ]_+^2         (eq. 2)
        L_reg  = 1/K      sum_k |mu_k|                                                   (eq. 3)

    Args:
        embeddings: ``[B, D, *spatial]``, or ``[N_total, D]`` when ``offsets`` is given.
        slots: ``[B, *spatial]`` or ``[N_total]``, any signed integer dtype: the number of each
            pixel's instance in its image, 0 to ``max_instances - 1``, or -1 for an ignored pixel.
            A slot without a pixel is no instance. Values outside that range are not checked.
        max_instances: ``M``, number of slots of an image.
        offsets: ``[B + 1]``, where the clouds of a packed batch begin and end.
        delta_var: margin of eq. 1.
        delta_dist: margin of eq. 2.
        norm: 1 or 2.

    Returns:
        variance, distance, regularization, each ``[B]``; float64 for float64, else float32. An
        image without instances gives 0, and so does the distance of a single instance.
    """
    x, image, images = _flatten(embeddings, offsets)  # [P, D], [P]
    slot = slots.reshape(-1).to(torch.int64)  # [P]

    # One row a slot, and a last one that takes the ignored pixels. Their embedding is replaced
    # before any arithmetic: where() cuts the gradient, so a NaN there touches nothing.
    ignored = slot < 0
    row = torch.where(ignored, images * max_instances, image * max_instances + slot)  # [P]
    x = torch.where(ignored[:, None], 0.0, x)

    rows = images * max_instances + 1
    count = torch.zeros(rows, dtype=torch.int64, device=x.device)
    count = count.index_add(0, row, torch.ones_like(row))  # [rows]: N_k
    pixels = count.clamp(min=1).to(x.dtype)
    mu = x.new_zeros(rows, x.shape[1]).index_add(0, row, x) / pixels[:, None]  # [rows, D]

    # eq. 1
    distance_to_mean = _norm(x - mu.index_select(0, row), norm)  # [P]
    pull = torch.relu(distance_to_mean - delta_var).square()
    pull = x.new_zeros(rows).index_add(0, row, pull) / pixels  # [rows]

    # From here on by image; the row of the ignored pixels is left behind.
    mu = mu[:-1].reshape(images, max_instances, x.shape[1])  # [B, M, D]
    exists = (count[:-1] > 0).reshape(images, max_instances)  # [B, M]
    instances = exists.sum(1)  # [B]: K
    per_instance = instances.clamp(min=1).to(x.dtype)
    variance = pull[:-1].reshape(images, max_instances).sum(1) / per_instance

    # eq. 2, over ordered pairs
    others = ~torch.eye(max_instances, dtype=torch.bool, device=x.device)
    pair = exists[:, :, None] & exists[:, None, :] & others  # [B, M, M]
    between = mu[:, :, None, :] - mu[:, None, :, :]  # [B, M, M, D]
    between = torch.where(pair[..., None], between, 0.0)
    push = torch.relu(2 * delta_dist - _norm(between, norm)).square()
    push = torch.where(pair, push, 0.0)  # [B, M, M]
    pairs = (instances * (instances - 1)).clamp(min=1).to(x.dtype)
    distance = push.sum((1, 2)) / pairs

    # eq. 3; the mean of an empty slot is 0, and so is its norm
    regularization = _norm(mu, norm).sum(1) / per_instance
    return variance, distance, regularization


def _norm(v: Tensor, norm: int) -> Tensor:
    """``|v|`` over the last axis, ``[..., D] -> [...]``; a constant where it is 0.

    ``sqrt`` has no derivative at 0 and autograd would make NaN of it, at the first order or the
    second; there the sum of squares is replaced, so that every derivative is 0. The derivative of
    ``abs`` is 0 at NaN, which would hide the NaN from the gradient; that of a square is not.
    """
    if norm == 1:
        return torch.where(v.isnan(), v.square(), v.abs()).sum(-1)
    if norm != 2:
        raise ValueError(f"norm: expected 1 or 2, got {norm}")
    squares = v.square().sum(-1)
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def _flatten(embeddings: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Pixels ``[P, D]`` in the accumulate type, the image of each ``[P]``, and ``B``."""
    half = embeddings.dtype in (torch.float16, torch.bfloat16)
    x = embeddings.to(torch.float32) if half else embeddings
    if offsets is not None:
        position = torch.arange(x.shape[0], device=x.device)
        image = torch.searchsorted(offsets.to(torch.int64), position, right=True) - 1
        return x, image, offsets.shape[0] - 1
    images = x.shape[0]
    pixels = math.prod(x.shape[2:])
    image = torch.arange(images, device=x.device)[:, None].expand(images, pixels).reshape(-1)
    return x.movedim(1, -1).reshape(images * pixels, x.shape[1]), image, images


def _number_instances(
    labels: Tensor, slots: Tensor, ignore_label: int | Sequence[int] | None
) -> int:
    """Write the number of each pixel's id into ``slots`` (of the shape of ``labels``).

    Ignored pixels keep the -1 they have. Returns how many ids there are.
    """
    if ignore_label is None:
        ignore_labels = []
    elif isinstance(ignore_label, int | Integral):
        ignore_labels = [int(ignore_label)]
    else:
        ignore_labels = [int(ignored_id) for ignored_id in ignore_label]
    ids = labels.to(torch.int64)
    takes_part = kept(ids, ignore_labels)
    distinct, number = torch.unique(ids[takes_part], return_inverse=True)
    slots[takes_part] = number
    return int(distinct.numel())


def kept(ids: Tensor, ignore_labels: Sequence[int]) -> Tensor:
    """Which of some int64 ids are not ignored, bool of the shape of ``ids``."""
    takes_part = torch.ones_like(ids, dtype=torch.bool)
    for ignored_id in ignore_labels:
        takes_part &= ids != ignored_id
    return takes_part


def _check_counts(counts: Sequence[int], max_instances: int | None) -> int:
    """The number of slots to use, after a check that no image has more instances than that."""
    if max_instances is None:
        return max(counts, default=0)
    for image, count in enumerate(counts):
        if count > max_instances:
            raise ValueError(
                f"max_instances: expected at most {max_instances} instances in an image, "
                f"got {count} in image {image}"
            )
    return max_instances


def _offsets_of_batch(batch: Tensor, batch_size: int | None) -> Tensor:
    """``[N_total]`` sorted cloud numbers -> ``[B + 1]`` offsets."""
    if batch_size is None:
        batch_size = int(batch[-1]) + 1 if batch.numel() else 0
    sizes = torch.bincount(batch.to(torch.int64), minlength=batch_size)
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def _weigh_and_reduce(
    variance: Tensor,  # [B]
    distance: Tensor,  # [B]
    regularization: Tensor,  # [B]
    alpha: float,
    beta: float,
    gamma: float,
    reduction: str,
    return_terms: bool,
) -> Tensor | DiscriminativeLossTerms:
    """The loss of each image (eq. 4), and the reduction over images; of none, the mean is 0."""
    loss = alpha * variance + beta * distance + gamma * regularization
    terms = DiscriminativeLossTerms(loss, variance, distance, regularization)
    if reduction == "mean":
        images = max(loss.shape[0], 1)
        terms = DiscriminativeLossTerms(*(term.sum() / images for term in terms))
    elif reduction == "sum":
        terms = DiscriminativeLossTerms(*(term.sum() for term in terms))
    elif reduction != "none":
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')
    return terms if return_terms else terms.loss
