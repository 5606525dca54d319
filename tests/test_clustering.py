"""The compiled clustering: exact at loss 0, and the reference's bits everywhere else."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
from support.budget import LAYOUTS
from support.clustering_cases import exact_case, hard_case, repeated_case, trained
from torch import Tensor

from discloss_cuda import (
    Clusters,
    cluster_embeddings,
    cluster_embeddings_packed,
    reference,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def assert_equal(found: Clusters, expected: Clusters) -> None:
    for name, ours, theirs in zip(Clusters._fields, found, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


def assert_as_reference(
    embeddings: Tensor, foreground: Tensor | None = None, **options: Any
) -> Clusters:
    """All results are those of the reference; they come back."""
    found = cluster_embeddings(embeddings, foreground, return_clusters=True, **options)
    expected = reference.cluster_embeddings(embeddings, foreground, return_clusters=True, **options)
    assert_equal(found, expected)
    return found


# --- exact ----------------------------------------------------------------------------------------


def test_true_partition_where_the_loss_is_0() -> None:
    most = 0
    for seed in range(1000):
        case = exact_case(seed)
        foreground = case.labels > 0
        ids = cluster_embeddings(case.embeddings, foreground, **case.options)
        assert torch.equal(ids, case.labels), seed
        most = max(most, int(ids.max()))
    assert most > 350


def test_one_large_instance_and_a_thousand_small_ones() -> None:
    case = hard_case()
    ids = cluster_embeddings(case.embeddings, **case.options)
    assert torch.equal(ids, case.labels)


def test_a_round_that_keeps_no_mode_is_repeated_with_the_full_sample() -> None:
    case = repeated_case()
    ids = cluster_embeddings(case.embeddings, **case.options)
    assert torch.equal(ids, case.labels)


# --- the reference's bits -------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3, 8, 16, 17, 300])
@pytest.mark.parametrize("sample", [100, 4096])
def test_embeddings_as_trained(dim: int, sample: int) -> None:
    shape, instances = ((30, 33), 12) if dim < 100 else ((17, 19), 4)
    x, labels = trained(shape, instances, dim, mixed=0.1, seed=dim, images=2)
    clusters = assert_as_reference(x, labels > 0, sample=sample, fragment=20)
    assert (clusters.number >= instances // 2).all()
    assert_as_reference(x[:1], sample=sample, min_size=3)


@pytest.mark.parametrize("spread", [0.01, 0.2, 0.3, 0.4, 0.6, 1.5])
@pytest.mark.parametrize("dim", [2, 16])
def test_embeddings_of_no_training(dim: int, spread: float) -> None:
    """One cloud, from collapsed to far apart: trees grow over many groups, rounds are many."""
    x = torch.randn(1, dim, 34, 31, generator=torch.Generator().manual_seed(dim)) * spread
    assert_as_reference(x, sample=300, min_size=4)
    assert_as_reference(x)


@pytest.mark.parametrize("shape", [(61,), (30, 31), (9, 10, 11), (3, 6, 7, 8)])
@pytest.mark.parametrize("options", [{"fragment": 12}, {"connected": True, "min_size": 5}])
def test_grids_of_any_number_of_axes(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    x, labels = trained(shape, 6, 4, mixed=0.25, spread=0.3, images=2, background=0.2)
    assert_as_reference(x, labels > 0, **options)
    noise = labels % 2 + 3 * torch.randint(
        0, 2, labels.shape, generator=torch.Generator().manual_seed(0)
    )
    assert_as_reference(noise[:, None].float().expand(-1, 2, *shape) * 3, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype) -> None:
    for dim, height in ((5, 7), (8, 24), (16, 23), (35, 11)):
        x, labels = trained((height, 37), 5, dim, images=2, seed=dim)
        x = x.to(dtype)
        for sample in (100, 4096):
            expected = assert_as_reference(x, labels > 0, sample=sample)
            for layout in LAYOUTS.values():
                assert_equal(
                    cluster_embeddings(layout(x), labels > 0, sample=sample, return_clusters=True),
                    expected,
                )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", [120, 4096])
def test_clouds(dtype: torch.dtype, sample: int) -> None:
    x, labels = trained((900,), 9, 6, mixed=0.1, background=0.3)
    points = x[0].T.to(dtype)
    offsets = torch.tensor([0, 0, 600, 601, 850, 900])
    for foreground in (None, labels[0] > 0, labels[0] % 3):
        found, expected = (
            function(points, offsets, foreground, sample=sample, min_size=4, return_clusters=True)
            for function in (cluster_embeddings_packed, reference.cluster_embeddings_packed)
        )
        assert_equal(found, expected)
    batch = torch.repeat_interleave(torch.arange(5), offsets.diff())
    ids = cluster_embeddings_packed(points, batch=batch, sample=sample, min_size=4)
    assert torch.equal(ids, cluster_embeddings_packed(points, offsets, sample=sample, min_size=4))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16]
)
@pytest.mark.parametrize("sample", [120, 4096])
def test_classes(dtype: torch.dtype, sample: int) -> None:
    x, labels = trained((40, 33), 6, 5, mixed=0.1)
    columns = torch.arange(33) // 11
    signed = dtype.is_signed
    classes = ((labels > 0) * (columns * (50 if signed else 100) - 30 * signed + 1)).to(dtype)
    modes = x[:, :, ::9, 7].transpose(1, 2)
    for given in (None, modes):
        clusters = assert_as_reference(x, classes, sample=sample, modes=given, fragment=4)
        assert len(clusters.classes[clusters.classes != 0].unique()) == 3
    assert_as_reference(x, (labels > 0).to(dtype) * 7, sample=sample)  # of one class


def test_classes_that_int32_cannot_hold() -> None:
    x = torch.zeros(1, 1, 6)
    classes = torch.tensor([[2**40, 0, -(2**63), 2**40, -(2**63), 2**40 + 2**32]])
    clusters = assert_as_reference(x, classes, min_size=1)
    assert clusters.classes[0, :3].tolist() == [2**40, -(2**63), 2**40 + 2**32]


@pytest.mark.parametrize("sample", [120, 4096])
def test_given_modes(sample: int) -> None:
    x, labels = trained((40, 33), 8, 5, mixed=0.1, images=2)
    modes = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(1))
    modes[:, 3:20] = x[:, :, 3, 3:20].transpose(1, 2)  # some several times
    modes[0, 5], modes[1, 6, 2], modes[1, 7, 0] = torch.nan, torch.nan, torch.inf
    modes[1, 9] = 1e20  # far from everything
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = modes.to(dtype)
        clusters = assert_as_reference(x, labels > 0, sample=sample, modes=given)
        assert (clusters.source >= 0).any()
        assert_as_reference(x, labels > 0, sample=sample, modes=given, max_clusters=5)
    assert_as_reference(x, labels > 0, sample=sample, modes=modes[:, :0])


@pytest.mark.parametrize("sample", [120, 4096])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_pixels_that_are_not_finite(value: float, sample: int) -> None:
    x, labels = trained((30, 27), 6, 5, images=2)
    foreground = labels > 0
    for where in (slice(0, 1), slice(3, 30, 6), slice(None)):
        y = x.clone()
        y[0, 2, :, 20][where] = value
        y[0, 4, where, 5] = value
        y[1][:, ~foreground[1]] = value  # these play no role
        for classes in (foreground, labels % 3):
            for modes in (None, x[:, :, 20:21, 20].transpose(1, 2)):
                clusters = assert_as_reference(
                    y, classes, sample=sample, modes=modes, fragment=9, max_clusters=5
                )
                assert not clusters.ids[0, where, 5].any()
    clusters = assert_as_reference(torch.full_like(x, value), sample=sample, modes=modes)
    assert not clusters.ids.any()


def test_float64_beyond_float32() -> None:
    x, _ = trained((30, 20), 4, 3, background=0.0)
    y = x.double() + 1e-9  # rounded to float32 before anything else
    y[0, 0, 3, 4], y[0, 1, 5, 6] = 1e39, -1e300
    clusters = assert_as_reference(y)
    assert clusters.ids[0, 3, 4] == clusters.ids[0, 5, 6] == 0
    expected = torch.where(y.float().isfinite().all(1), cluster_embeddings(y.float()), 0)
    assert torch.equal(clusters.ids, expected)


def test_embeddings_whose_distances_overflow() -> None:
    x, _ = trained((30, 20), 4, 3, background=0.0)
    x[0, :, ::7] = 3e38
    x[0, 1, 1::7] = -3e38
    assert_as_reference(x, sample=100)
    assert_as_reference(x)


def test_next_to_nothing() -> None:
    x = torch.randn(2, 3, 4, 5)
    nothing = torch.zeros(2, 4, 5, dtype=torch.bool)
    assert not assert_as_reference(x, nothing).ids.any()
    assert_as_reference(x, nothing.long(), modes=torch.zeros(2, 4, 3), connected=True, fragment=3)
    one = torch.randn(1, 3, 1)
    assert assert_as_reference(one, min_size=1).ids.tolist() == [[1]]
    assert assert_as_reference(one, min_size=2).ids.tolist() == [[0]]
    assert_as_reference(one, min_size=1, sample=1, max_clusters=1, connected=True, fragment=5)
    for shape in ((0, 3, 4), (2, 3, 0), (2, 3, 0, 5)):
        assert_as_reference(torch.zeros(shape), fragment=2, connected=True)


@pytest.mark.parametrize("sample", [120, 4096])
def test_more_instances_than_max_clusters(sample: int) -> None:
    x, labels = trained((40, 40), 12, 5, mixed=0.05)
    for limit in (1, 4, 11, 12, 13):
        clusters = assert_as_reference(x, labels > 0, max_clusters=limit, sample=sample)
        assert int(clusters.number) == min(limit, 12)
        if limit < 12:
            assert clusters.truncated.all()
    for limit in (2, 30):
        options = {"connected": True, "min_size": 2, "max_clusters": limit, "sample": sample}
        assert_as_reference(x, labels > 0, **options)


# --- bounds of what is skipped --------------------------------------------------------------------


def next_to(value: Tensor, steps: Tensor) -> Tensor:
    """Float32 numbers ``steps`` units in the last place from positive ones."""
    return (value.view(torch.int32) + steps.int()).view(torch.float32)


@pytest.mark.parametrize("dim", [1, 2, 3, 16])
@pytest.mark.parametrize("margins", [(0.5, 1.5), (0.3, 0.61), (0.7, 3.1)])
def test_points_within_two_units_of_each_bound(dim: int, margins: tuple[float, float]) -> None:
    """Points around others, at the radii that the definition compares with, and half of them."""
    v, d = margins
    generator = torch.Generator().manual_seed(dim)
    bounds = torch.tensor([1.2 * v, 2.02 * v, 1.98 * (d - v), d, 1.01 * v, d / 2])
    for seed in range(5 if dim < 16 else 3):
        centres = torch.zeros(6, dim)
        centres[:, 0] = torch.arange(6) * bounds[(seed + torch.arange(6)) % 6]
        centres += torch.randn(1, dim, generator=generator) * (seed % 2)
        directions = torch.randn(300, dim, generator=generator)
        if seed < 4:  # along an axis the radius is met to the bit
            directions = torch.nn.functional.one_hot(
                torch.randint(dim, (300,), generator=generator), dim
            ).float() * torch.randn(300, 1, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True).clamp(min=1e-9)
        radii = bounds[torch.randint(6, (300,), generator=generator)]
        radii = next_to(radii, torch.randint(-2, 3, (300,), generator=generator))
        around = centres[torch.randint(6, (300,), generator=generator)]
        x = torch.cat([around + directions * radii[:, None], centres.repeat(9, 1)])
        x = x[torch.randperm(len(x), generator=generator)].T[None]
        for min_size, sample in ((1, 4096), (4, 120), (4, 40)):
            options = {"delta_var": v, "delta_dist": d, "min_size": min_size, "sample": sample}
            assert_as_reference(x, **options)
            assert_as_reference(x, modes=centres[None], **options)


@pytest.mark.parametrize("dim", [1, 3, 16])
def test_pixels_halfway_between_two_modes(dim: int) -> None:
    """Within two units of half of the distance, where one mode may be taken without the others."""
    generator = torch.Generator().manual_seed(dim)
    modes = torch.randn(1, 8, dim, generator=generator) * 2
    pairs = torch.randint(8, (2, 900), generator=generator)
    a, b = modes[0, pairs[0]], modes[0, pairs[1]]
    middle = ((a.double() + b.double()) / 2).float()
    nudged = middle * (1 + 6e-8 * torch.randint(-2, 3, (900, 1), generator=generator))
    x = torch.cat([nudged, modes[0].repeat(30, 1)]).T[None]
    for sample in (120, 4096):
        clusters = assert_as_reference(x, modes=modes, sample=sample, delta_dist=3.0)
        assert (clusters.source[0] >= 0).sum() > 3


# --- the same for every number of threads ---------------------------------------------------------


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, labels = trained((150, 170), 40, 8, mixed=0.05, images=3)
    x[1, 3, 40:42, 50] = torch.nan
    options: dict[str, Any] = {"fragment": 20, "return_clusters": True, "sample": 2048}
    for foreground in (labels > 0, labels % 4, None):
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            try:
                results.append(cluster_embeddings(x, foreground, **options))
                one = cluster_embeddings(x[:1], None, return_clusters=True)
            finally:
                torch.set_num_threads(1)
            assert_equal(one, cluster_embeddings(x[:1], None, return_clusters=True))
        for result in results[1:]:
            assert_equal(result, results[0])


# --- memory ---------------------------------------------------------------------------------------


def sparse(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """A float16 tensor whose elements lie far apart, in memory that exists where it is touched."""
    elements = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    no_reserve = 0x4000  # MAP_NORESERVE of Linux
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, 2 * elements, flags=flags)
    flat = torch.frombuffer(memory, dtype=torch.float16, count=elements)
    return flat.as_strided(shape, strides)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1, 3, 100), (1, 2**31 + 64, 1)),  # channels lie far apart
        ((1, 3, 100), (1, 1, 2**26 + 5)),  # pixels
        ((2, 3, 100), (2**32 + 5, 100, 1)),  # images
    ],
)
def test_elements_beyond_the_range_of_32_bits(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    labels = (torch.arange(100) % 4).expand(shape[0], 100)  # instances everywhere
    x = 5.0 * torch.nn.functional.one_hot(labels)[..., 1:].transpose(1, 2)
    far = sparse(shape, strides).copy_(x)
    for sample in (12, 4096):  # of these only the image is read where it lies
        found = cluster_embeddings(far, labels > 0, min_size=4, sample=sample)
        assert found.any()
        expected = cluster_embeddings(x.half(), labels > 0, min_size=4, sample=sample)
        assert torch.equal(found, expected)
