"""The loss over pairs of pixels that the discriminative loss does without, for comparison.

Source: Weinberger and Saul, "Distance Metric Learning for Large Margin Nearest Neighbor
Classification" (JMLR 2009), which pulls every pair of one label together and pushes pairs of
different labels apart; in the form whose terms can be set beside those of arXiv 1708.02551, which
replaces the pixels of an instance by their mean. Symbols as in :mod:`discloss_cuda.reference.loss`.
Its cost grows with the square of the number of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .loss import _norm, kept


class PairwiseTerms(NamedTuple):
    """Scalars, means over the images of the batch."""

    loss: Tensor
    pull: Tensor
    push: Tensor


def pairwise_loss(
    embeddings: Tensor,  # [B, D, *spatial]
    labels: Tensor,  # [B, *spatial]
    *,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    norm: int = 2,
    ignore_label: int | Sequence[int] | None = None,
    block: int = 512,
) -> PairwiseTerms:
    """Pull and push of all pairs of pixels of an image.

    With ``v = 2 delta_var``, ``d = 2 delta_dist``, and ``alpha pull + beta push`` the loss::

        pull = 1/K        sum_k      1/(2 N_k^2)  sum_{i, j in k}       [ |x_i - x_j| - v ]_+^2
        push = 1/(K(K-1)) sum_{a != b} 1/(N_a N_b) sum_{i in a, j in b} [ d - |x_i - x_j| ]_+^2

    With ``delta_var = 0`` the pull is ``L_var`` of the discriminative loss, since
    ``1/N sum |x_i - mu|^2 = 1/(2 N^2) sum sum |x_i - x_j|^2``; with one pixel an instance the push
    is its ``L_dist``.

    Pairs are visited in blocks, each computed once more in backward: beside the gradient, memory is
    of ``block x block x D``, not of ``N x N``.

    Args:
        embeddings: ``[B, D, *spatial]``, float32 or float64.
        labels: ``[B, *spatial]``, ids of any integer dtype.
        delta_var: two pixels of an instance are pulled together when farther than twice this.
        delta_dist: two pixels of different instances are pushed apart when nearer than twice this.
        alpha: weight of the pull.
        beta: weight of the push.
        norm: 2 (Euclidean) or 1.
        ignore_label: id or ids of the pixels to leave out.
        block: pixels on either side of a block of pairs, at least 1.

    Returns:
        :class:`PairwiseTerms`. An image without instances has pull and push 0, one with a single
        instance push 0.
    """
    if block < 1:
        raise ValueError(f"block: expected a number >= 1, got {block}")
    margins = (2 * delta_var, 2 * delta_dist)
    ignored = [ignore_label] if isinstance(ignore_label, int) else list(ignore_label or ())
    pull = push = embeddings.flatten()[:0].sum()  # 0: keeps the graph alive where there is no pair
    for x, ids in zip(embeddings.flatten(2), labels.flatten(1).to(torch.int64), strict=True):
        takes_part = kept(ids, ignored)
        pulled, pushed = _terms_of_image(
            x[:, takes_part].t(), ids[takes_part], margins, norm, block
        )
        pull, push = pull + pulled, push + pushed
    images = max(embeddings.shape[0], 1)
    pull, push = pull / images, push / images
    return PairwiseTerms(alpha * pull + beta * push, pull, push)


def _terms_of_image(
    x: Tensor,  # [N, D]
    ids: Tensor,  # [N]
    margins: tuple[float, float],
    norm: int,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Pull and push of one image."""
    distinct, instance, pixels = torch.unique(ids, return_inverse=True, return_counts=True)
    instances = len(distinct)  # K
    weight = 1 / pixels.to(x.dtype)[instance]  # [N]: 1 / N_k
    parts = list(zip(*(t.split(block) for t in (x, instance, weight)), strict=True))
    pull, push = x.new_zeros(()), x.new_zeros(())
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts[: i + 1]):
            sums = checkpoint(
                _block_sums,
                *(*rows, *columns, margins, norm),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            both = 1 if i == j else 2  # (i, j) and (j, i)
            pull, push = pull + both * sums[0], push + both * sums[1]
    return pull / (2 * max(instances, 1)), push / max(instances * (instances - 1), 1)


def _block_sums(
    x: Tensor,  # [R, D]
    x_instance: Tensor,  # [R]
    x_weight: Tensor,  # [R]
    y: Tensor,  # [C, D]
    y_instance: Tensor,  # [C]
    y_weight: Tensor,  # [C]
    margins: tuple[float, float],
    norm: int,
) -> Tensor:
    """``[2]``: weighted sums over the pairs of a block, of one instance and of two."""
    distance = _norm(x[:, None] - y[None], norm)  # [R, C]
    same = x_instance[:, None] == y_instance[None]
    hinge = torch.where(same, distance - margins[0], margins[1] - distance)
    weighted = torch.relu(hinge).square() * x_weight[:, None] * y_weight[None]
    return torch.stack([weighted[same].sum(), weighted[~same].sum()])
