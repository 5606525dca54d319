"""How well the masks and identities of a video agree with the true ones: sMOTSA, MOTSA, MOTSP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._contingency import contingency_table


class MotsScores(NamedTuple):
    """What :func:`mots_scores` returns: scalars on the device of the maps, of all frames."""

    smotsa: Tensor  # float64, at most 1; below 0 where errors outweigh
    motsa: Tensor  # float64, at most 1
    motsp: Tensor  # float64, above 0.5 to 1: mean IoU of the true positives
    switches: Tensor  # int64: IDS
    true_positives: Tensor  # int64: pairs of masks
    false_positives: Tensor  # int64: predicted masks without a partner
    false_negatives: Tensor  # int64: true masks without a partner


def mots_scores(
    predicted: Tensor,  # [T, *spatial] or [N_total]
    target: Tensor,  # [T, *spatial] or [N_total]
    offsets: Tensor | None = None,  # [T + 1]
    *,
    background: int | None = 0,
    ignore_label: int | Sequence[int] | None = None,
) -> MotsScores:
    r"""Scores of one video of ``T`` frames (Voigtlaender et al., "MOTS", arXiv 1902.03604).

    In each frame a predicted and a true mask are a pair (true positive) if their IoU is above 1/2,
    which leaves no choice. A switch (IDS) is a true mask whose pair has another id than the last
    pair of the same track, however long ago. With ``M`` true masks in all frames,

        sMOTSA = (sum of IoU over pairs - FP - IDS) / M
        MOTSA  = (TP - FP - IDS) / M
        MOTSP  = (sum of IoU over pairs) / TP

    and 0 / 0 is NaN. All instances are of one class. Ignored pixels are left out of both maps
    before anything is counted; the paper instead excuses false positives that lie mostly there.

    Args:
        predicted: ids ``[T, *spatial]``, frames in order; bool, uint8, uint16 or a signed integer.
        target: true ids, likewise; a track has the same id in every frame.
        offsets: ``[T + 1]`` for frames that are clouds: both maps are ``[N_total]``.
        background: the id of either map that is no instance, or None.
        ignore_label: id or ids of the target whose pixels are left out of both maps.

    Raises:
        TypeError: a map is no tensor of integers.
        ValueError: shapes or devices differ.

    Example:
        >>> import torch
        >>> from discloss_cuda.metrics import mots_scores
        >>> target = torch.tensor([[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 2, 2]])  # two frames
        >>> predicted = torch.tensor([[7, 7, 7, 0, 8, 8], [7, 7, 7, 0, 9, 9]])
        >>> scores = mots_scores(predicted, target)
        >>> scores.switches, scores.smotsa  # (3/4 + 1 + 3/4 + 1 - 1) / 4
        (tensor(1), tensor(0.6250, dtype=torch.float64))
    """
    table = contingency_table(
        predicted, target, offsets, background=background, ignore_label=ignore_label
    )
    row, column, pixels = table.instances()
    union = table.predicted.pixels[row] + table.target.pixels[column] - pixels
    pair = 2 * pixels > union
    row, column = row[pair], column[pair]
    iou = (pixels[pair].to(torch.float64) / union[pair]).sum()
    matched = pair.sum()
    found, true = table.predicted.instance.sum(), table.target.instance.sum()

    # Regions are sorted by frame: a stable sort by track leaves the pairs of a track in order.
    column, by_frame = column.sort()
    track, by_track = table.target.label[column].sort(stable=True)
    ids = table.predicted.label[row[by_frame][by_track]]
    switches = ((track[1:] == track[:-1]) & (ids[1:] != ids[:-1])).sum()
    wrong = found - matched + switches
    return MotsScores(
        smotsa=(iou - wrong) / true,
        motsa=(matched - wrong).to(torch.float64) / true,
        motsp=iou / matched,
        switches=switches,
        true_positives=matched,
        false_positives=found - matched,
        false_negatives=true - matched,
    )
