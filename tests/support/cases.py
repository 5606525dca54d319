"""Named inputs, shared by tests and benchmarks: label maps, embeddings, and small cases.

Embeddings of a case are float64; a test converts them to the dtype it is about and gives every
implementation the converted values. Nothing here depends on the compiled package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ROOT

DATA = ROOT / "benchmarks" / "data"

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

LABEL_DTYPES = (
    torch.bool,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
)


def voronoi_labels(
    shape: Sequence[int], instances: int, *, seed: int = 0, background: float = 0.0
) -> Tensor:
    """A coherent label map ``[*shape]`` int64: each pixel has the id of the nearest of
    ``instances`` random sites, 1 to ``instances``.

    ``background`` is the share of pixels, those farthest from any site, that become id 0.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = torch.rand(instances, len(shape), generator=generator)
    nearest = torch.full(tuple(shape), torch.inf)
    labels = torch.zeros(tuple(shape), dtype=torch.int64)
    axes = [torch.arange(size, dtype=torch.float32) for size in shape]
    for number, site in enumerate(sites):
        squared = torch.zeros(())
        for axis, size, position in zip(axes, shape, site, strict=True):
            squared = squared[..., None] + (axis - position * size).square()
        labels = torch.where(squared < nearest, number + 1, labels)
        nearest = torch.minimum(squared, nearest)
    if background > 0 and nearest.numel():
        kept = int(nearest.numel() * (1 - background))
        labels[nearest > nearest.flatten().kthvalue(max(kept, 1)).values] = 0
    return labels


def clustered_embeddings(
    labels: Tensor,  # [B, *spatial]
    dim: int,
    *,
    seed: int = 0,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    norm: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Embeddings ``[B, dim, *spatial]`` as of a network half trained.

    An id's centre has a random direction and a random length, a pixel lies around its centre in a
    random direction at a random distance. Half of the pixels leave ``delta_var``, and of the pairs
    of means some are nearer than ``2 * delta_dist`` and some are not, by wide margins whatever
    ``dim`` is: every branch of both hinges is taken, and few values are lost in cancellation.
    """
    generator = torch.Generator().manual_seed(seed)
    working = torch.float64 if dtype == torch.float64 else torch.float32

    def points(*shape: int) -> Tensor:  # [dim, *shape], lengths from 0 to 1
        direction = torch.randn(dim, *shape, generator=generator, dtype=working)
        length = torch.linalg.vector_norm(direction, ord=norm, dim=0)
        return direction * (torch.rand(shape, generator=generator, dtype=working) / length)

    out = torch.empty(labels.shape[0], dim, *labels.shape[1:], dtype=dtype)
    for b in range(labels.shape[0]):
        ids, number = torch.unique(labels[b].to(torch.int64), return_inverse=True)
        centres = 3 * delta_dist * points(len(ids))
        out[b] = centres[:, number] + 2 * delta_var * points(*labels.shape[1:])
    return out


@functools.cache
def real_labels(name: str) -> Tensor:
    """A label map of ``benchmarks/data``, ``[B, *spatial]``; 0 is background.

    nuclei ``[1, 512, 512]``, nuclei_batch ``[4, 450, 450]``, volume ``[1, 31, 61, 57]``, embryo
    ``[31, 29, 101, 151]`` (31 frames of a volume; ``[None]`` makes one clip of them).
    """
    file, array = {
        "nuclei": ("stardist2d.npz", "mask"),
        "nuclei_batch": ("bbbc007_a9_450.npz", "masks"),
        "volume": ("stardist3d_synthetic.npz", "mask"),
        "embryo": ("tgmm_mini_tracks.npz", "tracks"),
    }[name]
    with np.load(DATA / file) as arrays:
        labels = torch.from_numpy(arrays[array])
    return labels[None] if name in ("nuclei", "volume") else labels


@functools.cache
def real_clouds(clouds: int = 31) -> tuple[Tensor, Tensor]:
    """The first frames of the embryo as clouds: labels ``[N_total]`` int32, offsets ``[B + 1]``.

    A point is a voxel that is not background.
    """
    frames = [frame[frame != 0] for frame in real_labels("embryo")[:clouds]]
    sizes = torch.tensor([0] + [len(frame) for frame in frames])
    return torch.cat(frames), sizes.cumsum(0)


@dataclass(frozen=True, eq=False)
class Case:
    """One call: dense ``[B, D, *spatial]``, or packed ``[N_total, D]`` when it has offsets."""

    embeddings: Tensor
    labels: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    offsets: Tensor | None = None  # [B + 1]

    @property
    def images(self) -> int:
        """``B``"""
        return len(self.offsets) - 1 if self.offsets is not None else len(self.embeddings)

    def leaf(self, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        """A copy of the embeddings that wants a gradient."""
        return self.embeddings.detach().to(device, dtype, copy=True).requires_grad_()

    def arguments(self, device: torch.device) -> list[Tensor]:
        """What follows the embeddings in a call: labels, and the offsets of a packed case."""
        tensors = (self.labels, self.offsets)
        return [tensor.to(device) for tensor in tensors if tensor is not None]


@functools.cache
def get_case(name: str) -> Case:
    """The case of that name, built once."""
    return (DENSE | PACKED)[name]()


def on(labels: Tensor, dim: int, seed: int = 0, **options: Any) -> Case:
    """A dense case on given labels ``[B, *spatial]``, clustered by the margins it will meet."""
    margins = {k: options[k] for k in ("delta_var", "delta_dist", "norm") if options.get(k)}
    x = clustered_embeddings(labels, dim, seed=seed, dtype=torch.float64, **margins)
    return Case(x, labels, options)


def _voronoi(batch: int, shape: Sequence[int], instances: int, dim: int, **options: Any) -> Case:
    maps = [voronoi_labels(shape, instances, seed=b) for b in range(batch)]
    return on(torch.stack(maps), dim, **options)


def _random(
    shape: Sequence[int], ids: Sequence[int], dim: int, dtype: torch.dtype, **options: Any
) -> Case:
    """Every pixel draws its id by itself: nothing coherent to profit from."""
    generator = torch.Generator().manual_seed(len(ids))
    choice = torch.randint(len(ids), tuple(shape), generator=generator)
    return on(torch.tensor(list(ids))[choice].to(dtype), dim, **options)


def labels_of_dtype(dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Random ids at both ends of the range of ``dtype``."""
    ids = [0, 1]
    if dtype != torch.bool:
        info = torch.iinfo(dtype)
        ids = sorted({info.min, info.min + 1, 0, 1, info.max - 1, info.max})
    generator = torch.Generator().manual_seed(1)
    return torch.tensor(ids)[torch.randint(len(ids), tuple(shape), generator=generator)].to(dtype)


def _exact(rows: list[list[float]], labels: list[int], **options: Any) -> Case:
    """One image ``[1, D, N]`` of numbers with few bits: every sum is exact in every dtype."""
    return Case(torch.tensor([rows], dtype=torch.float64), torch.tensor([labels]), options)


def _equal_means(norm: int) -> Case:
    """Instances 3 and 4 have the very same mean, instance 5 another."""
    rows = [[0.5, 1.5, 1.25, 0.75, -0.5, -1.5], [2.0, -1.0, 1.5, -0.5, 0.25, 0.75]]
    return _exact(rows, [3, 3, 4, 4, 5, 5], norm=norm, gamma=0.1)


def _zero_mean(norm: int) -> Case:
    """Instance 0 has mean 0, instance 1 has not."""
    rows = [[1.0, -1.0, 0.5, -0.5, 1.0, 1.5], [2.0, -2.0, -1.5, 1.5, 0.0, 0.5]]
    return _exact(rows, [0, 0, 0, 0, 1, 1], norm=norm, gamma=0.5)


def _on_the_hinge() -> Case:
    """Pixels exactly ``delta_var`` from their mean, means exactly ``2 delta_dist`` apart."""
    rows = [[1.0, 0.0, 0.5, 0.5, 4.0, 3.0, 3.5, 3.5], [0.5, 0.5, 1.0, 0.0] * 2]
    return _exact(rows, [0] * 4 + [1] * 4, delta_var=0.5, delta_dist=1.5, gamma=0.0)


def _in_the_kink_band() -> Case:
    """Along one axis the pixels differ by about a unit in the last place of float32: no float32
    sum can tell on which side of the mean each lies, and with norm 1 the sign decides."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 90, generator=generator, dtype=torch.float64)
    x[:, 1] = 0.1 + 1e-8 * torch.rand(90, generator=generator, dtype=torch.float64)
    return Case(x, torch.arange(90)[None] // 37, {"norm": 1})


def _mixed_counts() -> Case:
    """Images with 0, 1, 2 and 40 instances; 0 is ignored."""
    empty = torch.zeros(20, 21, dtype=torch.int64)
    maps = [voronoi_labels((20, 21), k, background=0.2) for k in (1, 2, 40)]
    return on(torch.stack([empty, *maps]), 5, ignore_label=0)


def _two_hundred_instances() -> Case:
    """Ids all over int64, two pixels each, not neighbours."""
    generator = torch.Generator().manual_seed(200)
    ids = torch.randint(INT64_MIN, INT64_MAX, (200,), generator=generator)
    return on(ids[torch.arange(400) * 7 % 200][None], 3)


def _zeros(shape: Sequence[int], labels: Tensor, **options: Any) -> Case:
    return Case(torch.zeros(tuple(shape), dtype=torch.float64), labels, options)


def _far_from_zero() -> Case:
    near = _voronoi(2, (15, 17), 6, 8)
    return Case(near.embeddings + 64.0, near.labels)


OTHER_NUMBERS = {"alpha": 0.7, "beta": 1.9, "gamma": 0.3, "delta_var": 0.2, "delta_dist": 0.9}

DENSE: dict[str, Callable[[], Case]] = {
    # shapes
    "points_d3": lambda: _voronoi(2, (137,), 4, 3, seed=4),
    "image_d16": lambda: _voronoi(2, (23, 31), 7, 16),
    "volume_d8": lambda: _voronoi(1, (7, 9, 11), 5, 8),
    "clip_d5": lambda: _voronoi(2, (2, 3, 5, 7), 6, 5),
    "d1": lambda: _voronoi(2, (301,), 5, 1),
    "d2": lambda: _voronoi(1, (17, 19), 3, 2),
    "d17": lambda: _voronoi(1, (41,), 3, 17),
    "d33": lambda: _voronoi(2, (13, 11), 4, 33),
    "d64": lambda: _voronoi(1, (12, 13), 4, 64),
    "d100": lambda: _voronoi(1, (9, 8), 3, 100),
    "d131": lambda: _voronoi(2, (45,), 3, 131),
    "aligned_d32": lambda: _voronoi(2, (16, 16), 5, 32),
    "lines_d2": lambda: _voronoi(3, (341,), 4, 2),
    "long_d8": lambda: _voronoi(1, (64, 48), 9, 8),
    "long_d16": lambda: _voronoi(1, (2053,), 6, 16),
    "no_image": lambda: _zeros((0, 4, 5, 6), torch.zeros(0, 5, 6, dtype=torch.int64)),
    "no_pixel": lambda: _zeros((2, 4, 0), torch.zeros(2, 0, dtype=torch.int64)),
    "no_pixel_2d": lambda: _zeros((2, 4, 5, 0), torch.zeros(2, 5, 0, dtype=torch.uint8)),
    "one_pixel": lambda: _exact([[0.5], [0.25]], [3]),
    # numbers of instances
    "one_instance": lambda: _voronoi(2, (9, 10), 1, 4),
    "two_instances": lambda: _voronoi(2, (9, 10), 2, 4, seed=4),
    "forty_instances": lambda: _voronoi(1, (40, 41), 40, 8),
    "two_hundred_instances": _two_hundred_instances,
    "mixed_counts": _mixed_counts,
    "single_pixels": lambda: on(torch.arange(62).reshape(2, 31), 3),
    "all_ignored": lambda: _random((2, 5, 6), (9,), 4, torch.int64, ignore_label=9),
    # ids
    "background_ignored": lambda: on(
        voronoi_labels((2, 25, 27), 12, background=0.5), 8, ignore_label=0
    ),
    "sparse_ids": lambda: _random((2, 18, 19), (20, 70, 120, 170, 220), 8, torch.uint8),
    "extreme_ids": lambda: _random(
        (2, 200), (INT64_MIN, INT64_MAX, -1, 0, 2**40, -(2**40), 2**32), 4, torch.int64
    ),
    "extreme_ids_ignored": lambda: _random(
        (1, 200), (INT64_MIN, INT64_MAX, -1, 0), 4, torch.int64, ignore_label=(INT64_MIN, -1)
    ),
    "random_ids": lambda: _random((1, 29, 31), range(-20, 21), 16, torch.int32),
    "several_ignored": lambda: _random(
        (2, 15, 16), range(8), 5, torch.int16, ignore_label=(0, 3, 7, 2**40, -1)
    ),
    "many_ignored": lambda: _random(
        (2, 301), range(1000, 1300), 3, torch.int32, ignore_label=tuple(range(1002, 1300))
    ),
    # where a derivative is decided by convention
    "equal_means": lambda: _equal_means(2),
    "zero_mean": lambda: _zero_mean(2),
    "on_the_hinge": _on_the_hinge,
    "zero_embeddings": lambda: _zeros((1, 8, 6, 7), voronoi_labels((1, 6, 7), 4), gamma=0.1),
    # numbers
    "delta_zero": lambda: _voronoi(1, (15, 17), 5, 4, delta_var=0.0, delta_dist=1.0),
    "deltas_zero": lambda: _voronoi(1, (99,), 4, 4, delta_var=0.0, delta_dist=0.0),
    "other_numbers": lambda: _voronoi(2, (15, 17), 6, 8, **OTHER_NUMBERS),
    "only_pull": lambda: _voronoi(1, (99,), 4, 4, beta=0.0, gamma=0.0),
    "only_push": lambda: _voronoi(1, (99,), 4, 4, alpha=0.0, gamma=0.0),
    "only_regularization": lambda: _voronoi(1, (99,), 4, 4, alpha=0.0, beta=0.0, gamma=1.0),
    "far_from_zero": _far_from_zero,
    # norm 1
    "norm1": lambda: _voronoi(2, (15, 17), 6, 8, norm=1),
    "norm1_d1": lambda: _voronoi(1, (211,), 3, 1, norm=1, seed=4),
    "norm1_d33": lambda: _voronoi(1, (12, 14), 9, 33, norm=1, **OTHER_NUMBERS),
    "norm1_single_pixels": lambda: on(torch.arange(31)[None], 3, norm=1),
    "norm1_zero_embeddings": lambda: _zeros((1, 4, 9), torch.arange(9)[None] // 3, norm=1),
    "norm1_equal_means": lambda: _equal_means(1),
    "norm1_zero_mean": lambda: _zero_mean(1),
    "norm1_in_the_kink_band": _in_the_kink_band,
}


def _packed(sizes: Sequence[int], dim: int, instances: int, **options: Any) -> Case:
    """Runs of one id, as a scan line gives them, and a fifth of strays."""
    generator = torch.Generator().manual_seed(dim)
    labels = torch.arange(sum(sizes)) // 7 * 5 % instances
    stray = torch.rand(sum(sizes), generator=generator) < 0.2
    labels[stray] = torch.randint(instances, (int(stray.sum()),), generator=generator)
    dense = on(labels[None], dim, seed=dim, **options)
    x = dense.embeddings[0].t().contiguous()
    return Case(x, labels, options, torch.tensor([0, *sizes]).cumsum(0))


PACKED: dict[str, Callable[[], Case]] = {
    "clouds_d3": lambda: _packed((5, 301, 0, 64, 1), 3, 6),
    "clouds_d16": lambda: _packed((0, 130, 77, 0, 0), 16, 9),
    "clouds_d1": lambda: _packed((40, 9), 1, 6),
    "clouds_d33": lambda: _packed((31, 57), 33, 7, ignore_label=(1, 2)),
    "clouds_d64": lambda: _packed((65, 2, 64), 64, 3),
    "clouds_long_d8": lambda: _packed((2053, 1030), 8, 12, ignore_label=0),
    "clouds_norm1": lambda: _packed((33, 0, 70), 4, 5, norm=1, **OTHER_NUMBERS),
    "one_cloud": lambda: _packed((123,), 5, 7),
    "many_clouds": lambda: _packed(tuple(range(40)), 4, 3, delta_var=0.0, gamma=0.1),
    "no_cloud": lambda: _packed((), 4, 1),
    "empty_clouds": lambda: _packed((0, 0), 4, 1),
}
