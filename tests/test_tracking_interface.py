"""Options, frames and states that a tracker does not take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from discloss_cuda.tracking import InstanceTracker


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"match_distance": 0}, ValueError, "match_distance: .* at most delta_dist = 1.5, got 0"),
        ({"match_distance": 1.6}, ValueError, "match_distance: .* delta_dist = 1.5, got 1.6"),
        ({"match_distance": "1"}, TypeError, "match_distance: expected a number, got '1'"),
        ({"mean_weight": 0.0}, ValueError, "mean_weight: .* above 0, at most 1, got 0.0"),
        ({"mean_weight": 1.5}, ValueError, "mean_weight: .* at most 1, got 1.5"),
        ({"mean_weight": float("nan")}, ValueError, "mean_weight: expected a finite number"),
        ({"max_lost": -1}, ValueError, "max_lost: expected a number from 0 to .*, got -1"),
        ({"max_lost": 1.0}, TypeError, "max_lost: expected an int, got 1.0"),
        ({"delta_dist": 1.0}, ValueError, "delta_dist: .* got 1.0"),
        ({"min_size": 0}, ValueError, "min_size"),
    ],
)
def test_wrong_option(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message):
        InstanceTracker(**options)


def test_wrong_frame_leaves_the_tracks() -> None:
    tracker = InstanceTracker(min_size=2)
    with pytest.raises(ValueError, match=r"^embeddings: expected shape"):
        tracker.update(torch.zeros(2, 3))
    assert tracker.tracks is None
    tracker.update(torch.zeros(2, 3, 4))
    before = tracker.tracks
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (torch.zeros(1, 3, 4), None, ValueError, r"embeddings: .*\[2, 3, ...\].* got \[1, 3, 4\]"),
        (torch.zeros(2, 4, 4), None, ValueError, r"embeddings: .*\[2, 3, ...\].* got \[2, 4, 4\]"),
        (torch.zeros(2, 3, 4, device="meta"), None, ValueError, "embeddings: .*cpu, got meta"),
        ([[0.0]], None, TypeError, "embeddings: expected a tensor, got .* of type list"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 5) > 0, ValueError, "foreground: expected shape"),
        (torch.zeros(2, 3, 4).int(), None, TypeError, "embeddings: .* got Int"),
    ]
    for x, foreground, error, message in wrong:
        with pytest.raises(error, match="^" + message):
            tracker.update(x, foreground)
    assert tracker.tracks is before


def test_wrong_state() -> None:
    tracker = InstanceTracker(min_size=2, max_clusters=7)
    tracker.update(torch.zeros(2, 3, 4))
    state = tracker.state_dict()
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({"ids": state["ids"]}, ValueError, "state: expected .*'begun'.* got .'ids'"),
        (state | {"ids": state["ids"].float()}, TypeError, r"state\['ids'\]: .*got torch.float32"),
        (state | {"lost": [0]}, TypeError, r"state\['lost'\]: .* got \[0\]"),
        (state | {"lost": state["lost"][:1]}, ValueError, r"state\['lost'\]: .*\[2, 7\], got"),
        (state | {"means": state["means"][0]}, ValueError, r"state\['means'\]: .* got \[7, 3\]"),
    ]
    for value, error, message in wrong:
        with pytest.raises(error, match="^" + message):
            tracker.load_state_dict(value)
    with pytest.raises(ValueError, match=r"max_clusters = 8, got \[2, 7, 3\]"):
        InstanceTracker(max_clusters=8).load_state_dict(state)


def test_empty_state_is_before_the_first_frame() -> None:
    tracker = InstanceTracker(min_size=2)
    assert tracker.state_dict() == {}
    tracker.update(torch.tensor([[[0.0, 0.0, 9.0, 9.0]]]))
    tracker.load_state_dict({})
    assert tracker.tracks is None
    assert tracker.update(torch.zeros(2, 3, 4)).tolist() == [[1] * 4] * 2
