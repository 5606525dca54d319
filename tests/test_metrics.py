"""Scores of instances: against counting by hand, scikit-learn, and an optimal assignment."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix
from support.cases import INT64_MAX, INT64_MIN, LABEL_DTYPES, labels_of_dtype, real_labels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from discloss_cuda import metrics
from discloss_cuda.metrics import AP_THRESHOLDS, InstanceScores, instance_scores

# --- the same scores from sets of pixels, one image at a time -------------------------------------


def _instances(ids: list[int], background: int | None) -> list[set[int]]:
    found: dict[int, set[int]] = {}
    for pixel, label in enumerate(ids):
        found.setdefault(label, set()).add(pixel)
    return [pixels for label, pixels in found.items() if label != background]


def _most_pairs(edges: list[set[int]]) -> int:
    """The largest matching, by trying everything: ``edges[i]`` are the partners of i."""
    if not edges:
        return 0
    without = _most_pairs(edges[1:])
    return max([without] + [1 + _most_pairs([e - {j} for e in edges[1:]]) for j in edges[0]])


def _rand_index(target: list[int], predicted: list[int]) -> float:
    """ARI by a look at every pair of pixels."""
    pairs = list(itertools.combinations(range(len(target)), 2))
    same_t = [target[i] == target[j] for i, j in pairs]
    same_p = [predicted[i] == predicted[j] for i, j in pairs]
    if same_t == same_p:
        return 1.0
    both = sum(a and b for a, b in zip(same_t, same_p, strict=True))
    expected = sum(same_t) * sum(same_p) / len(pairs)
    return (both - expected) / ((sum(same_t) + sum(same_p)) / 2 - expected)


def _scores_by_sets(
    predicted: list[int],
    target: list[int],
    background: int | None,
    ignored: tuple[int, ...],
    thresholds: tuple[float, ...],
) -> dict[str, Any]:
    kept = [i for i, label in enumerate(target) if label not in ignored]
    predicted, target = [predicted[i] for i in kept], [target[i] for i in kept]
    found, true = _instances(predicted, background), _instances(target, background)
    counts = {"predicted": len(found), "target": len(true), "dic": abs(len(found) - len(true))}
    if not found or not true:
        score = float(len(found) == len(true))
        nothing = [0] * len(thresholds)
        ap_at = [score] * len(thresholds)
        shared = {"sbd": score, "ap": score, "ari": score, "ap_at": ap_at}
        return counts | shared | {"true_positives": nothing}

    def best_dice(ones: list[set[int]], others: list[set[int]]) -> float:
        each = [max(2 * len(x & y) / (len(x) + len(y)) for y in others) for x in ones]
        return sum(each) / len(each)

    matched = [
        _most_pairs(
            [{j for j, y in enumerate(true) if len(x & y) / len(x | y) >= t} for x in found]
        )
        for t in thresholds
    ]
    ap_at = [tp / (len(found) + len(true) - tp) for tp in matched]
    inside = [i for i, label in enumerate(target) if label != background]
    return counts | {
        "sbd": min(best_dice(found, true), best_dice(true, found)),
        "ap": sum(ap_at) / len(ap_at),
        "ari": _rand_index([target[i] for i in inside], [predicted[i] for i in inside]),
        "ap_at": ap_at,
        "true_positives": matched,
    }


def _assert_equal(scores: InstanceScores, image: int, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        found = getattr(scores, name)[image].tolist()
        assert found == pytest.approx(value, abs=1e-12), name


SMALL = st.integers(0, 3)
LOW = (0.1, 0.25, 1 / 3, 0.5, 0.6, 1.0)


@st.composite
def _maps(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Ids of two maps; the prediction follows the truth here and there."""
    images, pixels = draw(st.integers(1, 3)), draw(st.integers(0, 12))
    shape = st.lists(st.tuples(SMALL, SMALL, st.booleans()), min_size=pixels, max_size=pixels)
    drawn = [draw(shape) for _ in range(images)]
    target = [[t for t, _, _ in image] for image in drawn]
    found = [[t + 10 * (t > 0) if follow else p for t, p, follow in image] for image in drawn]
    size = (images, pixels)
    ids = (torch.tensor(image, dtype=torch.int64) for image in (found, target))
    predicted, truth = (image.reshape(size) for image in ids)
    return predicted, truth


@given(_maps(), st.sampled_from([0, None, 2]), st.sampled_from([(), (1,), (0, 3)]))
def test_scores_are_those_of_sets_of_pixels(
    maps: tuple[Tensor, Tensor], background: int | None, ignored: tuple[int, ...]
) -> None:
    predicted, target = maps
    scores = instance_scores(
        predicted, target, background=background, ignore_label=ignored, thresholds=LOW
    )
    for image, (p, t) in enumerate(zip(predicted.tolist(), target.tolist(), strict=True)):
        _assert_equal(scores, image, _scores_by_sets(p, t, background, ignored, LOW))


# --- against others' definitions, on real maps ----------------------------------------------------


def _disturbed(target: Tensor, seed: int) -> Tensor:
    """As a network might predict it: shifted, some instances merged, split, lost, invented."""
    generator = torch.Generator().manual_seed(seed)
    ids = target.to(torch.int64).roll((1, 2), (-2, -1))
    names = torch.randint(1, 150, (int(ids.max()) + 1,), generator=generator)  # merges some
    names[0] = 0
    names[torch.rand(len(names), generator=generator) < 0.1] = 0
    found = names[ids]
    halves = torch.arange(found.shape[-1]) // 16 % 2 * 1000  # splits those on a border
    found = torch.where((found > 0) & (found % 3 == 0), found + halves, found)
    found[..., :9, :9] = 77_777
    return found


def _pair(name: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    target = real_labels(name)
    return _disturbed(target, seed), target


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("name", ["nuclei", "nuclei_batch", "volume"])
def test_ari_is_scikit_learns(device: torch.device, name: str) -> None:
    predicted, target = _pair(name)
    inside = instance_scores(predicted.to(device), target.to(device)).ari
    everywhere = instance_scores(predicted.to(device), target.to(device), background=None).ari
    for image, (p, t) in enumerate(zip(predicted.numpy(), target.numpy(), strict=True)):
        foreground = t != 0
        expected = adjusted_rand_score(t[foreground], p[foreground])
        assert 0.1 < expected < 0.9, "expected a case that is neither trivial nor perfect"
        assert inside[image].item() == pytest.approx(expected, abs=1e-12)
        expected = adjusted_rand_score(t.ravel(), p.ravel())
        assert everywhere[image].item() == pytest.approx(expected, abs=1e-12)


def _assigned(iou: np.ndarray, threshold: float) -> int:
    """stardist's rule: the assignment that has the most pairs, then the most IoU, counted."""
    if not iou.size:
        return 0
    costs = -(iou >= threshold).astype(float) - iou / (2 * min(iou.shape))
    return int((iou[linear_sum_assignment(costs)] >= threshold).sum())


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("name", ["nuclei", "nuclei_batch", "volume"])
def test_true_positives_are_those_of_an_optimal_assignment(device: torch.device, name: str) -> None:
    predicted, target = _pair(name)
    thresholds = (0.05, 0.1, 0.3, *AP_THRESHOLDS)
    scores = instance_scores(predicted.to(device), target.to(device), thresholds=thresholds)
    for image, (p, t) in enumerate(zip(predicted.numpy(), target.numpy(), strict=True)):
        table = contingency_matrix(t.ravel(), p.ravel())  # background is the first row and column
        union = table.sum(1)[:, None] + table.sum(0)[None] - table
        iou = (table / union)[1:, 1:]
        expected = [_assigned(iou, threshold) for threshold in thresholds]
        assert len(set(expected)) > 4, "expected a case that many thresholds tell apart"
        assert scores.true_positives[image].tolist() == expected
        counted = sum(iou.shape) - np.array(expected)
        assert scores.ap_at[image].tolist() == pytest.approx((expected / counted).tolist())
        assert scores.ap[image].item() == pytest.approx((expected / counted).mean())


# --- by hand --------------------------------------------------------------------------------------


def _of(predicted: list[int], target: list[int], **options: Any) -> dict[str, Any]:
    maps = (torch.tensor([ids], dtype=torch.int64) for ids in (predicted, target))
    scores = instance_scores(*maps, **options)
    return {name: value[0].tolist() for name, value in scores._asdict().items()}


def test_perfect() -> None:
    found = _of([5, 5, 0, 9, 9, 9], [1, 1, 0, 2, 2, 2])
    assert [found[name] for name in ("sbd", "dic", "ap", "ari")] == [1.0, 0, 1.0, 1.0]


def test_one_instance_split_in_two() -> None:
    """A of 8 pixels is found as 5 and 3; IoU 5/8, Dice 10/13 and 6/11."""
    found = _of([1] * 5 + [2] * 3, [4] * 8)
    assert found["dic"] == 1
    assert found["sbd"] == pytest.approx((10 / 13 + 6 / 11) / 2)
    assert found["true_positives"] == [1, 1, 1] + [0] * 7
    assert found["ap_at"] == [0.5] * 3 + [0.0] * 7
    assert found["ap"] == pytest.approx(0.15)
    assert found["ari"] == 0.0


def test_sbd_is_the_worse_direction() -> None:
    """One of two instances is found: best Dice is 1 from the prediction, 1/2 from the truth."""
    assert _of([1, 1, 0, 0], [1, 1, 2, 2])["sbd"] == 0.5
    assert _of([1, 1, 2, 2], [1, 1, 0, 0])["sbd"] == 0.5


def test_halves_at_an_iou_of_a_half_exactly() -> None:
    """Two halves of one instance both reach 0.5, and only one of them is a match; both ways."""
    halves, whole = [1, 1, 2, 2, 3, 3, 3, 3], [7, 7, 7, 7, 8, 8, 9, 9]
    for predicted, target in ((halves, whole), (whole, halves)):
        found = _of(predicted, target)
        assert found["true_positives"] == [2] + [0] * 9
        assert found["ap_at"][0] == 2 / 4


def test_below_a_half_a_matching_is_searched() -> None:
    """Taking the nearest partner first would leave one instance alone: 2 pairs, not 1."""
    predicted, target = [1, 1, 1, 1, 2, 2], [7, 7, 8, 8, 8, 7]
    # IoU: (1, 7) 2/5, (1, 8) 2/5, (2, 7) 1/4, (2, 8) 1/4
    assert _of(predicted, target, thresholds=[0.25, 0.3])["true_positives"] == [2, 1]


@pytest.mark.parametrize("pixels", [0, 1, 6])
def test_empty_images(pixels: int) -> None:
    nothing, something = [0] * pixels, [3] * pixels
    found = _of(nothing, nothing)
    assert [found[name] for name in ("sbd", "dic", "ap", "ari")] == [1.0, 0, 1.0, 1.0]
    for predicted, target in ((nothing, something), (something, nothing)):
        found = _of(predicted, target)
        expected = [0.0, 1, 0.0, 0.0] if pixels else [1.0, 0, 1.0, 1.0]
        assert [found[name] for name in ("sbd", "dic", "ap", "ari")] == expected


def test_no_image() -> None:
    nothing = torch.zeros(0, 5, 4, dtype=torch.int32)
    scores = instance_scores(nothing, nothing)
    assert scores.sbd.shape == scores.ari.shape == (0,)
    assert scores.ap_at.shape == (0, 10)


def test_background() -> None:
    """Another id, or none: then 0 is an instance like any other."""
    predicted, target = [0, 0, 5, 5], [0, 0, 5, 6]
    assert _of(predicted, target)["predicted"] == 1
    assert _of(predicted, target, background=5)["target"] == 2
    found = _of(predicted, target, background=None)
    assert (found["predicted"], found["target"]) == (2, 3)
    assert found["true_positives"][0] == 2


def test_what_is_predicted_on_background_costs_area() -> None:
    """IoU and Dice count the whole of a predicted instance; ARI looks at true instances only."""
    found = _of([1, 1, 1, 1], [7, 7, 0, 0])
    assert found["sbd"] == pytest.approx(4 / 6)
    assert found["true_positives"][:2] == [1, 0]
    assert found["ari"] == 1.0


def test_ignored_pixels_are_in_neither_map() -> None:
    predicted, target = [1, 1, 1, 2, 2, 3], [7, 7, 255, 255, 8, 255]
    found = _of(predicted, target, ignore_label=255)
    assert [found[name] for name in ("sbd", "dic", "ap", "ari")] == [1.0, 0, 1.0, 1.0]
    assert found["predicted"] == 2, "instance 3 lies on ignored pixels alone"
    found = _of(predicted, target, ignore_label=[255, 7])
    assert (found["predicted"], found["target"]) == (1, 1)


# --- what the maps may be -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_label_dtypes(dtype: torch.dtype) -> None:
    """Ids at the ends of every dtype; the same numbers as int64 give the same scores."""
    target = labels_of_dtype(dtype, (2, 7, 9))
    predicted = target.roll(1, 2)
    expected = instance_scores(predicted.to(torch.int64), target.to(torch.int64))
    for found, value in zip(instance_scores(predicted, target), expected, strict=True):
        assert torch.equal(found, value)
    mixed = instance_scores(predicted.to(torch.int64), target)
    assert torch.equal(mixed.ari, expected.ari)


def test_ids_as_they_come() -> None:
    extreme = [INT64_MIN, INT64_MAX, -1, 2**40, 0]
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(5, (2, 2, 40), generator=generator)
    names = torch.tensor(extreme)
    predicted, target = names[small]
    scores = instance_scores(predicted, target, background=None)
    for found, value in zip(scores, instance_scores(*small, background=None), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=0)  # sums in another order
    assert scores.predicted.tolist() == [5, 5]
    assert instance_scores(predicted, target).target.tolist() == [4, 4]


def test_images_of_a_batch_are_apart() -> None:
    """The same id in two images is two instances; each row is what the image gives alone."""
    predicted, target = _pair("nuclei_batch")
    together = instance_scores(predicted, target)
    for image in range(len(target)):
        alone = instance_scores(predicted[image : image + 1], target[image : image + 1])
        for both, one in zip(together, alone, strict=True):
            assert torch.equal(both[image], one[0])


def test_packed_clouds() -> None:
    predicted, target = (ids.flatten() for ids in _pair("nuclei"))
    bounds = [0, 0, 1000, 100_000, 100_000, len(target)]
    scores = instance_scores(predicted, target, torch.tensor(bounds))
    assert scores.sbd.tolist()[0] == scores.sbd.tolist()[3] == 1.0
    for cloud, (first, last) in enumerate(itertools.pairwise(bounds)):
        alone = instance_scores(predicted[None, first:last], target[None, first:last])
        for both, one in zip(scores, alone, strict=True):
            assert torch.equal(both[cloud], one[0])


def test_layout_of_the_maps_does_not_matter() -> None:
    predicted, target = _pair("nuclei_batch")
    strided = instance_scores(predicted.mT.contiguous().mT, target)
    assert torch.equal(strided.ap_at, instance_scores(predicted, target).ap_at)


class _Sorts(TorchDispatchMode):
    """The largest tensor that was sorted or searched for distinct values."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("unique", "sort", "topk", "mode")):
            self.largest = max(self.largest, args[0].numel())
        return func(*args, **(kwargs or {}))


def test_after_one_pass_over_the_pixels_only_runs_are_left() -> None:
    target = torch.arange(64).repeat_interleave(64)[None, None].expand(1, 512, -1)  # 32768 runs
    with _Sorts() as sorts:
        scores = instance_scores(target, target)
    assert scores.ap.item() == 1.0
    assert 64 <= sorts.largest <= target.numel() / 64


# --- errors ---------------------------------------------------------------------------------------

MAP = torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: instance_scores([1], MAP), TypeError, "predicted: expected a tensor, got list"),  # type: ignore[arg-type]
        (lambda: instance_scores(MAP, MAP.float()), TypeError, "target: .*got torch.float32"),
        (lambda: instance_scores(MAP, MAP[:, :3]), ValueError, r"target: .*\[2, 4\], got \[2, 3\]"),
        (lambda: instance_scores(MAP, MAP.to("meta")), ValueError, "target: .*cpu, got meta"),
        (lambda: instance_scores(MAP, MAP, thresholds=[]), ValueError, "thresholds: "),
        (lambda: instance_scores(MAP, MAP, thresholds=[0.0]), ValueError, r"thresholds: .*\[0.0\]"),
        (lambda: instance_scores(MAP, MAP, thresholds=[0.5, 1.5]), ValueError, "thresholds: .*1.5"),
        (lambda: instance_scores(MAP, MAP, ignore_label="7"), TypeError, "ignore_label: "),  # type: ignore[arg-type]
        (lambda: instance_scores(MAP, MAP, torch.tensor([0, 8])), ValueError, "offsets: "),
        (lambda: instance_scores(MAP[0], MAP[0], torch.tensor([0, 3])), ValueError, "offsets: "),
        (
            lambda: instance_scores(MAP[0], MAP[0], torch.tensor([0, 3, 2, 4])),
            ValueError,
            "offsets",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.fixture
def without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "scipy", None)


@pytest.mark.usefixtures("without_scipy")
def test_scipy_is_asked_for_below_a_half_alone() -> None:
    predicted, target = _pair("volume")
    assert instance_scores(predicted, target).ap.item() > 0
    with pytest.raises(ImportError, match=r"below 0.5 needs scipy .*discloss_cuda\[metrics\]"):
        instance_scores(predicted, target, thresholds=[0.4])


def test_public_names() -> None:
    assert set(metrics.__all__) <= set(vars(metrics))
