"""Instances through a video: identities are kept, and the loss over clips is what keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cases import real_clouds, real_labels
from torch import Tensor

from discloss_cuda import discriminative_loss
from discloss_cuda.metrics import MotsScores, mots_scores
from discloss_cuda.tracking import InstanceTracker, Tracks

NOISE = 0.49  # below delta_var


def in_ball(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise ``[N, D]`` of lengths up to ``NOISE``, half of them exactly."""
    direction = torch.nn.functional.normalize(torch.randn(shape, generator=generator))
    return NOISE * direction * torch.rand(shape[0], 1, generator=generator).mul(2).clamp(max=1)


def corners(ids: Tensor) -> Tensor:
    """``[N] -> [N, 8]``: of a cube of side 3 = 2 delta_dist, an id below 256 each."""
    return 3.0 * ((ids[:, None] >> torch.arange(8)) & 1)


def line(*values: float) -> Tensor:
    """``[1, 1, 2 n]``: pixels of one channel, each value twice."""
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(2).reshape(1, 1, -1)


def tracked(frames: list[Tensor], **options: Any) -> list[list[int]]:
    """The ids of the values of each frame that ``line`` gave."""
    tracker = InstanceTracker(min_size=2, **options)
    return [tracker.update(frame)[0, ::2].tolist() for frame in frames]


def walk(frames: int, streams: int = 1) -> list[tuple[Tensor, Tensor]]:
    """A small video ``[B, 3, 6, 20]``: 8 instances whose means wander, are covered, come back."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(120).reshape(6, 20) // 5 % 8  # ids 0 to 7
    means = 3.0 * torch.stack([labels & 1, labels >> 1 & 1, labels >> 2], 0)
    video = []
    for t in range(frames):
        noise = 0.3 * torch.randn(streams, 3, 6, 20, generator=generator).clamp(-1, 1)
        visible = torch.stack([(labels + t + b) % 5 > 1 for b in range(streams)])
        video.append((means + 0.1 * t + noise, visible))
    return video


# --- real tracks ----------------------------------------------------------------------------------


def scores_of_the_embryo(covered: Tensor | None = None, **options: Any) -> MotsScores:
    """31 frames, 212 tracks; each pixel is its track's mean and noise. Where ``covered``
    ``[N_total]``, a pixel is not in the foreground."""
    labels, offsets = real_clouds()
    x = corners(labels) + in_ball((len(labels), 8), torch.Generator().manual_seed(0))
    visible = torch.ones_like(labels, dtype=torch.bool) if covered is None else ~covered
    tracker = InstanceTracker(max_clusters=256, **options)
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ids = [tracker.update(x[a:b].t()[None], visible[None, a:b])[0] for a, b in bounds]
    return mots_scores(torch.cat(ids), labels * visible, offsets)


def covered_for_three_frames() -> tuple[Tensor, int]:
    """Every third track in frames 12 to 14, and how many of these are seen before and after."""
    labels, offsets = real_clouds()
    frame = torch.searchsorted(offsets, torch.arange(len(labels)), right=True) - 1
    covered = (labels % 3 == 0) & (frame >= 12) & (frame <= 14)
    before, after = labels[frame == 11].unique(), labels[frame == 15].unique()
    back = before[torch.isin(before, after) & (before % 3 == 0)]
    return covered, len(back)


def test_no_identity_of_an_embryo_is_switched() -> None:
    masks = sum(len(frame.unique()) - 1 for frame in real_labels("embryo"))
    scores = scores_of_the_embryo()
    assert scores.switches == 0
    assert scores.true_positives == masks
    assert scores.smotsa == scores.motsp == 1  # not even a pixel is wrong


def test_none_is_switched_after_three_frames_of_absence() -> None:
    covered, back = covered_for_three_frames()
    assert back > 20
    scores = scores_of_the_embryo(covered, max_lost=3)
    assert scores.switches == 0
    assert scores.smotsa == 1
    forgotten = scores_of_the_embryo(covered, max_lost=2)
    assert forgotten.switches == back
    assert forgotten.motsp == 1


# --- the rules ------------------------------------------------------------------------------------


def test_new_instances_begin_tracks_in_the_order_of_their_first_pixels() -> None:
    assert tracked([line(0, 5), line(9, 5, 0, -5)]) == [[1, 2], [3, 2, 1, 4]]


@pytest.mark.parametrize("max_lost", [0, 1, 3])
def test_a_track_is_found_again_within_max_lost_frames(max_lost: int) -> None:
    away = [line(9)] * max_lost
    assert tracked([line(0, 9), *away, line(0)], max_lost=max_lost)[-1] == [1]
    assert tracked([line(0, 9), *away, line(9), line(0)], max_lost=max_lost)[-1] == [3]


def test_frames_of_absence_are_counted_in_a_row() -> None:
    frames = [line(0, 9), line(9), line(0, 9), line(9), line(0)]
    assert tracked(frames, max_lost=1)[-1] == [1]


def test_an_instance_below_min_size_does_not_continue_its_track() -> None:
    tracker = InstanceTracker(min_size=3)
    tracker.update(torch.tensor([[[0.0, 0.0, 0.0, 9.0, 9.0, 9.0]]]))
    ids = tracker.update(torch.tensor([[[0.0, 0.0, 9.0, 9.0, 9.0]]]))
    assert ids.tolist() == [[0, 0, 2, 2, 2]]
    assert tracker.tracks is not None
    assert tracker.tracks.lost[0, :3].tolist() == [0, 1, 0]


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
def test_running_mean(weight: float) -> None:
    tracker = InstanceTracker(min_size=2, mean_weight=weight)
    mean = 0.5
    tracker.update(torch.tensor([[[0.25, 0.75, 20.0, 20.0]]]))  # the other is there once
    for values in ([0.5, 1.25], [0.25, 0.5], [1.0, 1.25]):
        tracker.update(torch.tensor([[values]]))
        mean = (1 - weight) * mean + weight * sum(values) / 2
        assert tracker.tracks is not None
        torch.testing.assert_close(tracker.tracks.means[0, :2, 0], torch.tensor([mean, 20.0]))


def test_a_mean_follows_a_drift() -> None:
    """At a distance of e (1 - w) / w from an instance that moves by e."""
    frames = [line(0.4 * t) for t in range(20)]
    assert {ids for (ids,) in tracked(frames)} == {1}
    slow = [ids for (ids,) in tracked(frames, mean_weight=0.1)]
    assert len(set(slow)) > 1
    tracker = InstanceTracker(min_size=2)
    for frame in frames:
        tracker.update(frame)
    assert tracker.tracks is not None
    torch.testing.assert_close(tracker.tracks.means[0, 0], torch.tensor([0.4 * 19 - 0.4]))


def test_match_distance() -> None:
    frames = [line(0, 9), line(0.75, 9)]
    assert tracked(frames) == [[1, 2], [1, 2]]
    assert tracked(frames, match_distance=0.76) == [[1, 2], [1, 2]]
    assert tracked(frames, match_distance=0.75) == [[1, 2], [3, 2]]
    assert tracked(frames, match_distance=0.5) == [[1, 2], [3, 2]]
    # The track left behind is lost, and found by what is nearer to it than to the new one.
    again = [*frames, line(9, 0)]
    assert tracked(again, match_distance=0.5)[-1] == [2, 1]


def test_pixels_are_bounded_by_delta_dist() -> None:
    tracker = InstanceTracker(min_size=2)
    tracker.update(line(0))
    assert tracker.update(torch.tensor([[[0.0, 0.0, 1.25, 1.75]]])).tolist() == [[1, 1, 1, 0]]


def test_longest_lost_tracks_make_room() -> None:
    tracker = InstanceTracker(min_size=2, max_clusters=4)
    for frame in (line(0, 9), line(9, 18), line(27, 36)):  # lost: 2 and 3 for one frame, 1 for two
        tracker.update(frame)
    assert tracker.tracks is not None
    assert tracker.tracks.ids.tolist() == [[4, 5, 2, 3]]
    assert tracker.tracks.lost.tolist() == [[0, 0, 1, 1]]
    assert tracker.update(line(0, 9))[0, ::2].tolist() == [6, 2]
    assert tracker.tracks.begun.tolist() == [6]


def test_ids_without_foreground_or_number() -> None:
    x = line(0, 9, 0, 9)
    x[..., 2] = torch.nan
    x[..., 7] = torch.inf
    foreground = torch.tensor([[True, True, True, True, False, True, True, True]])
    tracker = InstanceTracker(min_size=1)
    assert tracker.update(x, foreground).tolist() == [[1, 1, 0, 2, 0, 1, 2, 0]]
    assert tracker.tracks is not None
    assert tracker.tracks.means[0, :3, 0].tolist() == [0.0, 9.0, 0.0]


def test_classes_keep_instances_of_one_embedding_apart() -> None:
    tracker = InstanceTracker(min_size=2)
    x, classes = line(0, 0), torch.tensor([[1, 1, 2, 2]])
    assert tracker.update(x, classes).tolist() == [[1, 1, 2, 2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    ours, single = InstanceTracker(min_size=2), InstanceTracker(min_size=2)
    for x, visible in walk(4):
        x = x.to(dtype)
        assert torch.equal(ours.update(x, visible), single.update(x.float(), visible))
    assert_same(ours.tracks, single.tracks)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0), (2, 3, 4, 0)])
def test_nothing_to_track(shape: tuple[int, ...]) -> None:
    tracker = InstanceTracker()
    for _ in range(2):
        assert tracker.update(torch.zeros(shape)).shape == (shape[0], *shape[2:])
    assert tracker.tracks is not None
    assert not tracker.tracks.ids.any()


# --- causal, deterministic, resumable -------------------------------------------------------------


def assert_same(ours: Tracks | None, theirs: Tracks | None) -> None:
    assert ours is not None
    assert theirs is not None
    for name, a, b in zip(Tracks._fields, ours, theirs, strict=True):
        assert torch.equal(a, b), name


def test_video_cut_at_every_frame() -> None:
    """Whatever follows a frame, and where it is resumed, its ids are the same."""
    video = walk(9, streams=2)
    whole = InstanceTracker(min_size=2, max_lost=1)
    returned = [whole.update(*frame) for frame in video]
    at_once = [ids.clone() for ids in returned]
    assert len({int(ids.max()) for ids in returned}) > 2  # tracks begin on the way
    for cut in range(len(video) + 1):
        tracker = InstanceTracker(min_size=2, max_lost=1)
        for frame, expected in zip(video[:cut], at_once, strict=False):
            assert torch.equal(tracker.update(*frame), expected)
        state = {name: value.clone() for name, value in tracker.state_dict().items()}
        taken = tracker.state_dict()
        for x, visible in video[:cut]:  # another future
            tracker.update(x.flip(1) + 1.7, ~visible)
        assert all(torch.equal(taken[name], value) for name, value in state.items())

        resumed = InstanceTracker(min_size=2, max_lost=1)
        resumed.load_state_dict(state)
        for frame, expected in zip(video[cut:], at_once[cut:], strict=True):
            assert torch.equal(resumed.update(*frame), expected)
        assert_same(resumed.tracks, whole.tracks)
    for ids, expected in zip(returned, at_once, strict=True):
        assert torch.equal(ids, expected)


def test_a_batch_is_its_streams() -> None:
    video = walk(6, streams=3)
    batch = InstanceTracker(min_size=2, max_lost=1)
    alone = [InstanceTracker(min_size=2, max_lost=1) for _ in range(3)]
    for x, visible in video:
        ids = batch.update(x, visible)
        for b, tracker in enumerate(alone):
            assert torch.equal(tracker.update(x[b : b + 1], visible[b : b + 1]), ids[b : b + 1])
    assert batch.tracks is not None
    for b, tracker in enumerate(alone):
        assert_same(Tracks(*(table[b : b + 1] for table in batch.tracks)), tracker.tracks)


def test_the_same_bits_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    after = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tracker = InstanceTracker(min_size=2)
            generator = torch.Generator().manual_seed(1)
            for _ in range(2):
                ids = torch.randint(200, (20_000,), generator=generator)
                x = corners(ids) + in_ball((20_000, 8), generator)
                tracker.update(x.t()[None])
            after.append(tracker.tracks)
    finally:
        torch.set_num_threads(before)
    assert_same(*after)


def test_means_are_those_of_the_pixels() -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(100, (20_000,), generator=generator)
    x = corners(ids) * 1000 + in_ball((20_000, 8), generator) + 1e-3
    tracker = InstanceTracker(min_size=2)
    found = tracker.update(x.t()[None])[0]
    assert tracker.tracks is not None
    for row in range(100):
        expected = x[found == row + 1].double().mean(0).float()
        torch.testing.assert_close(tracker.tracks.means[0, row], expected, rtol=2e-7, atol=1e-7)


# --- what the loss over a clip is for -------------------------------------------------------------


def drifting_clip() -> tuple[Tensor, Tensor]:
    """``[1, 2, 3, 4, 6]`` and labels: instance 1 jumps by 2 from frame to frame, 2 stays."""
    labels = torch.ones(1, 3, 4, 6, dtype=torch.int64)
    labels[..., 3:] = 2
    x = torch.zeros(1, 2, 3, 4, 6)
    x[:, 0] = torch.tensor([-2.0, 0.0, 2.0])[:, None, None] * (labels == 1)
    x[:, 1] = 5.0 * (labels == 2)
    return x.requires_grad_(), labels


def test_only_the_loss_over_the_clip_sees_a_drift() -> None:
    x, labels = drifting_clip()
    options = {"gamma": 0.0}
    for t in range(3):
        assert discriminative_loss(x[:, :, t], labels[:, t], **options) == 0.0
    loss = discriminative_loss(x, labels, **options)
    # Two of three frames are 2 from the mean of the clip: 1/2 . 2/3 . (2 - 0.5)^2
    torch.testing.assert_close(loss, torch.tensor(0.75))
    (gradient,) = torch.autograd.grad(loss, x)
    downhill = -gradient[0, 0].flatten(1)[:, labels[0, 0].flatten() == 1]  # of instance 1, [3, 12]
    assert (downhill[0] > 0).all()
    assert (downhill[2] < 0).all()
    assert not gradient[0, :, :, labels[0, 0] == 2].any()


def test_the_gradient_of_the_clip_mends_the_tracks() -> None:
    def ids_of_instance_1(clip: Tensor) -> list[int]:
        tracker = InstanceTracker()
        frames = clip.detach().repeat_interleave(2, 3).repeat_interleave(2, 4)  # above min_size
        return [int(tracker.update(frames[:, :, t])[0, 0, 0]) for t in range(3)]

    x, labels = drifting_clip()
    assert ids_of_instance_1(x) == [1, 3, 4]
    for _ in range(400):
        loss = discriminative_loss(x, labels, gamma=0.0)
        (gradient,) = torch.autograd.grad(loss, x)
        x = (x - 4.0 * gradient).detach().requires_grad_()
    assert loss < 1e-4
    assert ids_of_instance_1(x) == [1, 1, 1]
