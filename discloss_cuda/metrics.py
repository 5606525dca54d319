"""How well predicted instances agree with the true ones: SBD, |DiC|, AP, ARI.

All of them follow from the contingency table of two label maps, which one pass over the pixels
gives. It is kept sparse, on the device of the maps, for a whole batch at once, and ids are taken as
they come (negative, huge, not consecutive). On CUDA a call waits for the device, since the size of
a table is data. Nothing is differentiable.

Three rules hold for every score:

- **Background.** Pixels of the id ``background`` (0 by default) belong to no instance, in either
  map. With ``background=None`` every id is an instance.
- **Ignored pixels.** Where the *target* has an id of ``ignore_label``, the pixel is left out of
  both maps before anything is counted: areas shrink by it, and a predicted instance that lies
  nowhere else does not exist.
- **Empty images.** Without a true and without a predicted instance, SBD, AP and ARI are 1; with
  instances in only one of the maps they are 0.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._contingency import ContingencyTable, Regions, contingency_table, sum_by
from ._tracking_metrics import MotsScores, mots_scores

__all__ = [
    "AP_THRESHOLDS",
    "ContingencyTable",
    "InstanceScores",
    "MotsScores",
    "adjusted_rand_index",
    "average_precision",
    "contingency_table",
    "instance_scores",
    "mots_scores",
    "symmetric_best_dice",
    "true_positives",
]

AP_THRESHOLDS = tuple(k / 20 for k in range(10, 20))  # 0.5, 0.55, ..., 0.95


class InstanceScores(NamedTuple):
    """What :func:`instance_scores` returns; ``B`` images, ``T`` thresholds, on the maps' device."""

    sbd: Tensor  # [B] float64, 0 to 1
    dic: Tensor  # [B] int64: |DiC|, the absolute difference in count
    ap: Tensor  # [B] float64: the mean of ap_at
    ari: Tensor  # [B] float64, at most 1; about 0 by chance
    ap_at: Tensor  # [B, T] float64
    true_positives: Tensor  # [B, T] int64
    predicted: Tensor  # [B] int64: number of predicted instances
    target: Tensor  # [B] int64: number of true instances


def instance_scores(
    predicted: Tensor,  # [B, *spatial] or [N_total]
    target: Tensor,  # [B, *spatial] or [N_total]
    offsets: Tensor | None = None,  # [B + 1]
    *,
    background: int | None = 0,
    ignore_label: int | Sequence[int] | None = None,
    thresholds: Sequence[float] = AP_THRESHOLDS,
) -> InstanceScores:
    """All scores of each image of a batch, from one pass over the pixels.

    A single image needs its batch axis: ``instance_scores(predicted[None], target[None])``. A score
    of a data set is the mean of ``[B]`` over all its images; for AP one may also add up
    ``true_positives``, ``predicted`` and ``target`` and call :func:`average_precision`.

    Args:
        predicted: ids ``[B, *spatial]``, bool, uint8, uint16 or a signed integer.
        target: true ids of the same shape, on the same device, of any of these dtypes.
        offsets: ``[B + 1]`` for packed clouds: both maps are ``[N_total]``, cloud b is
            ``offsets[b]:offsets[b + 1]``.
        background: the id of either map that is no instance, or None.
        ignore_label: id or ids of the target whose pixels are left out of both maps.
        thresholds: IoU above 0, to 1. Below 0.5 an instance may have several partners and the
            matching takes scipy (``pip install discloss_cuda[metrics]``).

    Raises:
        TypeError: a map is no tensor of integers.
        ValueError: shapes or devices differ, or a threshold is out of range.
        ImportError: a threshold is below 0.5 and scipy is missing.

    Example:
        >>> import torch
        >>> from discloss_cuda.metrics import instance_scores
        >>> target = torch.tensor([[1, 1, 1, 1, 0, 2, 2, 2]])
        >>> predicted = torch.tensor([[7, 7, 7, 0, 0, 9, 9, 9]])
        >>> scores = instance_scores(predicted, target)
        >>> scores.dic, scores.ap  # IoU 3/4 and 1: both match at 0.5 to 0.75, one above
        (tensor([0]), tensor([0.7333], dtype=torch.float64))
    """
    table = contingency_table(
        predicted, target, offsets, background=background, ignore_label=ignore_label
    )
    matched = true_positives(table, thresholds)
    found, true = table.predicted.number(table.images), table.target.number(table.images)
    ap_at = average_precision(matched, found, true)
    return InstanceScores(
        sbd=symmetric_best_dice(table),
        dic=(found - true).abs(),
        ap=ap_at.mean(1),
        ari=adjusted_rand_index(table),
        ap_at=ap_at,
        true_positives=matched,
        predicted=found,
        target=true,
    )


def symmetric_best_dice(table: ContingencyTable) -> Tensor:
    """SBD ``[B]`` float64, as in the leaf segmentation challenge (Scharr et al. 2016).

    With ``BD(X, Y)`` the mean over the instances x of X of ``max_y 2 |x & y| / (|x| + |y|)``, it is
    the smaller of ``BD(predicted, target)`` and ``BD(target, predicted)``.
    """
    row, column, pixels = table.instances()
    both = table.predicted.pixels[row] + table.target.pixels[column]
    dice = 2 * pixels.to(torch.float64) / both

    def best(side: Regions, region: Tensor) -> Tensor:
        value = dice.new_zeros(len(side.label)).scatter_reduce(0, region, dice, "amax")
        number = side.number(table.images)
        return sum_by(side.image, value, table.images) / number.clamp(min=1)

    result = torch.minimum(best(table.predicted, row), best(table.target, column))
    return torch.where(_any_instance(table), result, 1.0)


def true_positives(table: ContingencyTable, thresholds: Sequence[float] = AP_THRESHOLDS) -> Tensor:
    """``[B, T]`` int64: the most pairs of a predicted and a true instance, ``IoU >= threshold``.

    Every instance is in one pair at most, as in stardist's matching. From 0.5 on that needs no
    search: two partners of one instance have ``IoU = 0.5`` exactly, are its halves, and meet
    nothing else. So the edges are pairs and stars of two, and each star has one edge too many.
    """
    wrong = [value for value in thresholds if not 0 < value <= 1]
    if wrong or not len(thresholds):
        raise ValueError(
            f"thresholds: expected one or more numbers above 0, to 1, got {list(thresholds)}"
        )
    row, column, pixels = table.instances()
    union = table.predicted.pixels[row] + table.target.pixels[column] - pixels
    iou = pixels.to(torch.float64) / union
    counts = []
    for threshold in thresholds:
        near = iou >= threshold
        r, c = row[near], column[near]
        if threshold < 0.5:
            image = table.predicted.image[_matched_rows(table, r, c)]
            counts.append(sum_by(image, torch.ones_like(image), table.images))
        else:
            edges = sum_by(table.predicted.image[r], torch.ones_like(r), table.images)
            stars = _stars(table.predicted, r, table.images) + _stars(table.target, c, table.images)
            counts.append(edges - stars)
    return torch.stack(counts, 1)


def average_precision(true_positives: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """``TP / (TP + FP + FN)`` at each threshold, ``[..., T]`` float64; 1 where nothing is counted.

    That is what the field of cell segmentation calls average precision (the Data Science Bowl 2018,
    stardist's ``matching``), and averages over thresholds. It is not the area below a curve of
    precision over recall, which needs a confidence of each instance.

    Args:
        true_positives: ``[..., T]``, of :func:`true_positives` or sums of them.
        predicted: ``[...]``, number of predicted instances, ``TP + FP``.
        target: ``[...]``, number of true instances, ``TP + FN``.
    """
    counted = (predicted + target)[..., None] - true_positives
    return torch.where(counted == 0, 1.0, true_positives / counted.clamp(min=1).to(torch.float64))


def adjusted_rand_index(table: ContingencyTable) -> Tensor:
    """ARI ``[B]`` float64 (Hubert and Arabie 1985), over the pixels of true instances.

    Of these, the pixels that are background in the prediction are one cluster more; what is
    predicted on true background is not looked at; a single true instance that is not divided scores
    1. With ``background=None`` it is the index of the two partitions of all pixels.
    """
    inside = table.target.instance[table.column]
    row, column, pixels = table.row[inside], table.column[inside], table.pixels[inside]
    image = table.target.image[column]

    def pairs(pixels: Tensor) -> Tensor:
        return pixels * (pixels - 1) // 2

    covered = sum_by(row, pixels, len(table.predicted.label))  # pixels of true instances
    together = sum_by(image, pairs(pixels), table.images)
    found = sum_by(table.predicted.image, pairs(covered), table.images)
    true = torch.where(table.target.instance, pairs(table.target.pixels), 0)
    true = sum_by(table.target.image, true, table.images)
    every = pairs(sum_by(image, pixels, table.images)).clamp(min=1)

    expected = found.to(torch.float64) * true / every
    most = (found + true).to(torch.float64) / 2
    same = (found == true) & (found == together)  # also where most == expected: 0 / 0
    index = (together - expected) / torch.where(same, 1.0, most - expected)
    one_sided = (table.predicted.number(table.images) == 0) != (
        table.target.number(table.images) == 0
    )
    return torch.where(one_sided, 0.0, torch.where(same | ~_any_instance(table), 1.0, index))


def _any_instance(table: ContingencyTable) -> Tensor:
    """``[B]`` bool: either map has an instance."""
    return (table.predicted.number(table.images) + table.target.number(table.images)) > 0


def _stars(side: Regions, region: Tensor, images: int) -> Tensor:
    """``[B]``: instances with two edges."""
    edges = torch.bincount(region, minlength=len(side.label))
    return sum_by(side.image, (edges > 1).to(torch.int64), images)


def _matched_rows(table: ContingencyTable, row: Tensor, column: Tensor) -> Tensor:
    """The rows of a matching of the most edges, of all images at once."""
    try:
        sparse = importlib.import_module("scipy.sparse")
        csgraph = importlib.import_module("scipy.sparse.csgraph")
    except ImportError as error:
        raise ImportError(
            "thresholds: a threshold below 0.5 needs scipy (pip install discloss_cuda[metrics])"
        ) from error
    shape = (len(table.predicted.label), len(table.target.label))
    edges = (torch.ones_like(row).cpu().numpy(), (row.cpu().numpy(), column.cpu().numpy()))
    partner = csgraph.maximum_bipartite_matching(
        sparse.csr_array(edges, shape=shape), perm_type="column"
    )
    return torch.from_numpy(partner >= 0).nonzero()[:, 0].to(row.device)
