"""Scores of a video, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from discloss_cuda.metrics import mots_scores


def counted(predicted: list[list[int]], target: list[list[int]], **options: Any) -> tuple[Any, ...]:
    """TP, FP, FN, IDS, and the three scores."""
    s = mots_scores(torch.tensor(predicted), torch.tensor(target), **options)
    counts = (s.true_positives, s.false_positives, s.false_negatives, s.switches)
    return (
        *(int(count) for count in counts),
        *(round(float(x), 6) for x in (s.smotsa, s.motsa, s.motsp)),
    )


def test_scores_of_the_truth() -> None:
    video = [[1, 1, 0, 2], [2, 2, 2, 0]]
    assert counted(video, video) == (3, 0, 0, 0, 1.0, 1.0, 1.0)


def test_a_mask_counts_by_its_iou() -> None:
    # IoU 3/4 and 2/3: (3/4 + 2/3) / 2
    found = counted([[5, 5, 5, 0, 6, 6, 6]], [[1, 1, 1, 1, 0, 2, 2]])
    assert found == (2, 0, 0, 0, 0.708333, 1.0, 0.708333)


def test_half_is_no_pair() -> None:
    # IoU 1/2 exactly: one false positive and one miss, of one true mask
    assert counted([[5, 0, 6, 6]], [[1, 1, 2, 2]]) == (1, 1, 1, 0, 0.0, 0.0, 1.0)


def test_a_switch_is_counted_once_and_beyond_gaps() -> None:
    target = [[1, 1, 2, 2]] * 5
    predicted = [[7, 7, 8, 8], [0, 0, 9, 9], [6, 6, 9, 9], [6, 6, 0, 0], [7, 7, 9, 9]]
    # track 1: 7, missed, 6, 6, 7: two switches. track 2: 8, 9, 9, missed, 9: one
    assert counted(predicted, target) == (8, 0, 2, 3, 0.5, 0.5, 1.0)


def test_an_exchange_is_two_switches() -> None:
    assert counted([[1, 1, 2, 2], [2, 2, 1, 1]], [[4, 4, 3, 3]] * 2) == (4, 0, 0, 2, 0.5, 0.5, 1.0)


def test_background_ignored_pixels_and_clouds() -> None:
    target, predicted = [[9, 1, 1, 2], [1, 1, 9, 9]], [[7, 7, 7, 0], [7, 7, 3, 0]]
    # Without the pixels of 9: frame 1 has 7 7 0 on 1 1 2, frame 2 has 7 7 on 1 1
    found = counted(predicted, target, ignore_label=9)
    assert found == (2, 0, 1, 0, 0.666667, 0.666667, 1.0)
    flat = [[*rows[0], *rows[1]] for rows in (predicted, target)]
    clouds = counted(*flat, ignore_label=9, offsets=torch.tensor([0, 4, 8]))
    assert clouds == found
    assert counted([[0, 1]], [[0, 1]], background=None)[0] == 2


def test_scores_of_nothing() -> None:
    scores = mots_scores(torch.zeros(2, 3).int(), torch.zeros(2, 3).int())
    assert scores.smotsa.isnan()
    assert scores.motsa.isnan()
    assert scores.motsp.isnan()
    missed = mots_scores(torch.zeros(2, 3).int(), torch.ones(2, 3).int())
    assert missed.smotsa == missed.motsa == 0
    assert missed.false_negatives == 2
    assert missed.motsp.isnan()
    with pytest.raises(ValueError, match=r"^target: expected the shape of predicted"):
        mots_scores(torch.zeros(2, 3).int(), torch.zeros(2, 4).int())
