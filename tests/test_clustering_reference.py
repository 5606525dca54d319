"""The reference of the clustering: against NumPy, point by point, and cases done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import clustering_oracle
from support.clustering_cases import exact_case, trained
from torch import Tensor

from discloss_cuda import Clusters, reference


def assert_as_oracle(
    embeddings: Tensor, foreground: Tensor | None, modes: Tensor | None = None, **options: Any
) -> Clusters:
    """Every result of the reference is that of the oracle, bit by bit."""
    clusters = reference.cluster_embeddings(
        embeddings, foreground, modes=modes, return_clusters=True, **options
    )
    for b in range(embeddings.shape[0]):
        expected = clustering_oracle.cluster(
            embeddings[b].numpy(),
            None if foreground is None else foreground[b].numpy(),
            modes=None if modes is None else modes[b].numpy(),
            **options,
        )
        number = int(clusters.number[b])
        assert torch.equal(clusters.ids[b], torch.from_numpy(expected.ids))
        assert number == len(expected.modes)
        assert bool(clusters.truncated[b]) == expected.truncated
        for k, mode in enumerate(expected.modes):
            assert torch.equal(clusters.modes[b, k], torch.from_numpy(mode.point))
            assert int(clusters.classes[b, k]) == mode.of_class
            assert int(clusters.source[b, k]) == mode.source
            assert int(clusters.counts[b, k]) == (expected.ids == k + 1).sum()
        assert not clusters.modes[b, number:].any()
        assert not clusters.counts[b, number:].any()
        assert (clusters.source[b, number:] == -1).all()
    return clusters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sample": 300, "min_size": 5},  # several rounds, steps above 1
        {"delta_var": 0.4, "delta_dist": 1.0},
        {"max_clusters": 4},
        {"fragment": 30, "connected": True, "min_size": 3},
        {"max_clusters": 4, "connected": True, "min_size": 2},
    ],
)
def test_reference_is_the_oracle(options: dict[str, Any]) -> None:
    x, labels = trained((30, 34), 7, 5, mixed=0.15)
    assert_as_oracle(x, labels > 0, **options)


def test_reference_is_the_oracle_with_classes_and_given_modes() -> None:
    x, labels = trained((30, 34), 7, 5, mixed=0.15)
    modes = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    modes[0, 0], modes[0, 1], modes[0, 4] = x[0, :, 20, 20], x[0, :, 3, 30], x[0, :, 3, 30]
    modes[0, 2] = torch.nan
    assert_as_oracle(x, labels % 3, modes)
    clusters = assert_as_oracle(x, labels > 0, modes, max_clusters=3)
    assert clusters.truncated.all()


def test_reference_is_the_oracle_in_volumes_with_pixels_that_are_not_finite() -> None:
    x, labels = trained((6, 10, 9), 5, 17, mixed=0.2, images=2)
    x[0, 3, 2, 2], x[1, 1, 1, :, 1] = torch.nan, torch.inf
    assert_as_oracle(x, labels > 0, fragment=8, min_size=8)
    assert_as_oracle(x, None, sample=600, min_size=8)


def test_reference_is_exact_where_the_loss_is_0() -> None:
    for seed in (0, 1, 5):
        case = exact_case(seed)
        ids = reference.cluster_embeddings(case.embeddings, case.labels > 0, **case.options)
        assert torch.equal(ids, case.labels), seed


# --- by hand --------------------------------------------------------------------------------------

# With v = 0.5 and d = 1.5: near = 1.01, far = 1.98, h = 0.6.


def line(*values: float) -> Tensor:
    """Pixels of one channel in a row, ``[1, 1, N]``."""
    return torch.tensor(values)[None, None]


def test_two_instances_are_numbered_by_their_first_pixels() -> None:
    x = line(5.0, 0.0, 5.1, 0.2, 0.1)
    ids = reference.cluster_embeddings(x, min_size=2)
    assert ids.tolist() == [[1, 2, 1, 2, 2]]


def test_a_mode_is_the_mean_of_its_tree_and_takes_pixels_nearer_than_d() -> None:
    x = line(0.0, 0.25, 0.5, 1.7, 1.8, 9.0)  # 1.7 - 0.25 < 1.5 < 1.8 - 0.25
    clusters = reference.cluster_embeddings(x, min_size=3, return_clusters=True)
    assert clusters.ids.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert clusters.modes[0, 0].item() == 0.25
    assert clusters.counts[0, :2].tolist() == [4, 0]
    assert clusters.number.tolist() == [1]


def test_a_valley_of_points_joins_what_a_gap_of_near_separates() -> None:
    joined = line(0.0, 0.0, 0.0, 0.9, 1.8, 1.8, 1.8)
    clusters = reference.cluster_embeddings(joined, min_size=3, return_clusters=True)
    # 0.9 hangs on the first of the two, equally near; the modes 0.225 and 1.8 are apart
    assert clusters.ids.tolist() == [[1, 1, 1, 1, 2, 2, 2]]
    assert clusters.modes[0, :2, 0].tolist() == [pytest.approx(0.225), pytest.approx(1.8)]


def test_few_points_are_no_instance_and_neither_is_a_lone_pixel_between() -> None:
    x = line(*[0.0] * 4, *[4.0] * 3, 2.0)
    assert reference.cluster_embeddings(x, min_size=4).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


def test_classes_are_infinitely_far_apart() -> None:
    x = line(*[0.0] * 6)
    classes = torch.tensor([[7, 7, 3, 3, 0, 7]])
    clusters = reference.cluster_embeddings(x, classes, min_size=2, return_clusters=True)
    assert clusters.ids.tolist() == [[1, 1, 2, 2, 0, 1]]
    assert clusters.classes[0, :3].tolist() == [7, 3, 0]


def test_given_modes_stay_where_they_are_and_need_support() -> None:
    x = line(0.0, 0.1, 0.2, 5.0, 5.0, 5.0)
    modes = torch.tensor([[[torch.nan], [0.5], [20.0]]])
    clusters = reference.cluster_embeddings(x, modes=modes, min_size=3, return_clusters=True)
    assert clusters.ids.tolist() == [[1, 1, 1, 2, 2, 2]]
    assert clusters.modes[0, :2, 0].tolist() == [0.5, 5.0]
    assert clusters.source[0, :2].tolist() == [1, -1]


def test_a_later_mode_keeps_away_from_earlier_ones() -> None:
    x = line(*[0.0] * 5, *[1.9] * 5)  # from the given mode 0: beyond d, but nearer than far
    modes = torch.zeros(1, 1, 1)
    ids = reference.cluster_embeddings(x, modes=modes, min_size=2)
    assert ids.tolist() == [[1] * 5 + [0] * 5]


def test_fragments_take_the_label_of_their_longest_border() -> None:
    a, b, c = 0.0, 4.0, 8.0
    rows = [
        [a, a, a, b, b, b],
        [a, a, c, b, b, b],  # c: two faces with a, two with b: the lower label
        [a, a, a, c, b, b],  # c: two faces with b, one with a, one with the a below
        [a, a, a, a, b, b],
        [c, c, c, c, c, c],
    ]
    x = torch.tensor(rows)[None, None]
    ids = reference.cluster_embeddings(x, min_size=1, fragment=3)
    assert ids.tolist() == [
        [
            [1, 1, 1, 2, 2, 2],
            [1, 1, 1, 2, 2, 2],
            [1, 1, 1, 1, 2, 2],
            [1, 1, 1, 1, 2, 2],
            [3, 3, 3, 3, 3, 3],
        ]
    ]


def test_connected_makes_an_instance_of_each_component() -> None:
    x = line(0.0, 0.0, 0.0, 5.0, 5.0, 0.0, 5.0, 5.0, 5.0)
    options: dict[str, Any] = {"min_size": 2, "connected": True, "return_clusters": True}
    clusters = reference.cluster_embeddings(x, **options)
    assert clusters.ids.tolist() == [[1, 1, 1, 2, 2, 0, 3, 3, 3]]
    assert clusters.modes[0, :4, 0].tolist() == [0, 5, 5, 0]
    assert not clusters.truncated.any()
    clusters = reference.cluster_embeddings(x, max_clusters=2, **options)
    assert clusters.ids.tolist() == [[1, 1, 1, 0, 0, 0, 2, 2, 2]]  # the largest stay
    assert clusters.truncated.all()


def test_beyond_max_clusters_the_heaviest_stay() -> None:
    x = line(*[0.0] * 3, *[5.0] * 5, *[10.0] * 4)
    clusters = reference.cluster_embeddings(x, min_size=2, max_clusters=2, return_clusters=True)
    assert clusters.ids.tolist() == [[0] * 3 + [1] * 5 + [2] * 4]
    assert clusters.truncated.tolist() == [True]
    clusters = reference.cluster_embeddings(x, min_size=2, max_clusters=3, return_clusters=True)
    assert clusters.number.tolist() == [3]
    assert not clusters.truncated.any()


def test_nothing_to_cluster() -> None:
    clusters = reference.cluster_embeddings(
        torch.randn(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.bool), return_clusters=True
    )
    assert not clusters.ids.any()
    assert clusters.number.tolist() == [0, 0]
    assert reference.cluster_embeddings(torch.zeros(0, 3, 4)).shape == (0, 4)
    assert reference.cluster_embeddings(torch.zeros(2, 3, 0)).shape == (2, 0)


def test_packed_clouds_are_images_of_one_axis() -> None:
    x, labels = trained((20,), 3, 4, images=2, background=0.2)
    points = x.movedim(1, -1).reshape(40, 4)
    offsets = torch.tensor([0, 20, 20, 40])
    packed = reference.cluster_embeddings_packed(
        points, offsets, labels.flatten() > 0, min_size=2, return_clusters=True
    )
    dense = reference.cluster_embeddings(x, labels > 0, min_size=2, return_clusters=True)
    assert torch.equal(packed.ids, dense.ids.flatten())
    assert torch.equal(packed.modes[[0, 2]], dense.modes)
    assert packed.number.tolist()[1] == 0
