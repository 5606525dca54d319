"""The embeddings that are clustered: as the loss leaves them, as it does not, and real ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from support.cases import DATA, real_clouds, real_labels, voronoi_labels

DELTA_VAR, DELTA_DIST = 0.5, 1.5  # of the loss that these embeddings come from, or seem to
FOREGROUND = 0.41  # share of a synthetic image


@dataclass(frozen=True)
class Problem:
    """What an implementation is given, and the truth."""

    embeddings: Tensor  # [B, D, *spatial], or [N_total, D] with offsets; float32
    labels: Tensor  # [B, *spatial] or [N_total]; 0 is background
    offsets: Tensor | None = None  # [B + 1], packed clouds

    @property
    def foreground(self) -> Tensor:
        """Bool, of the shape of the labels: the true one."""
        return self.labels != 0

    def points(self) -> list[Tensor]:
        """``[n, D]`` an image, its foreground pixels in raster order."""
        if self.offsets is None:
            pixels = [x.flatten(1).t() for x in self.embeddings]
            inside = list(self.foreground.flatten(1))
        else:
            sizes = self.offsets.diff().tolist()
            pixels, inside = self.embeddings.split(sizes), self.foreground.split(sizes)
        return [x[f].contiguous() for x, f in zip(pixels, inside, strict=True)]

    def instances(self) -> list[int]:
        """The true number of each image."""
        if self.offsets is None:
            maps = list(self.labels)
        else:
            maps = list(self.labels.split(self.offsets.diff().tolist()))
        return [len(ids[ids != 0].unique()) for ids in maps]


@dataclass(frozen=True)
class Workload:
    """A named problem, not yet in memory."""

    name: str
    about: str
    make: Callable[[], Problem]
    quick: bool = False  # part of --quick
    hidden: bool = False  # only when asked for by name


def apart(number: int, dim: int, least: float, generator: torch.Generator) -> Tensor:
    """``[number, dim]`` points at least `least` apart, drawn in a cube that grows as it fills."""
    kept, half = torch.empty(0, dim), 2.0
    while len(kept) < number:
        for point in (torch.rand(256, dim, generator=generator) * 2 - 1) * half:
            if (
                len(kept) < number
                and (torch.linalg.vector_norm(kept - point, dim=1) >= least).all()
            ):
                kept = torch.cat([kept, point[None]])
        half *= 1.08
    return kept


def trained(labels: Tensor, dim: int, *, sigma: float = 0.25, mixed: float = 0.03) -> Tensor:
    """``[*spatial]`` -> ``[dim, *spatial]``: as a network that was trained with the loss.

    Means are 2 delta_dist apart, a pixel lies around its mean in a random direction at a normal
    distance of `sigma`, and a share `mixed` of the pixels lies between two means, as borders do.
    Background is noise.
    """
    generator = torch.Generator().manual_seed(0)
    ids, number = torch.unique(labels.flatten(), return_inverse=True)
    inside = labels.flatten() != 0
    means = apart(len(ids), dim, 2 * DELTA_DIST, generator)
    direction = torch.randn(labels.numel(), dim, generator=generator)
    direction /= torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    distance = sigma * torch.randn(labels.numel(), 1, generator=generator).abs()
    means_of_pixels = means[number]
    lost = (torch.rand(labels.numel(), generator=generator) < mixed).nonzero()[:, 0]
    share = 0.2 + 0.6 * torch.rand(len(lost), 1, generator=generator)
    other = (
        number[lost] + torch.randint(1, len(ids) + 1, (len(lost),), generator=generator)
    ) % len(ids)
    means_of_pixels[lost] = torch.lerp(means_of_pixels[lost], means[other], share)
    noise = 1.5 * torch.randn(labels.numel(), dim, generator=generator)
    x = torch.where(inside[:, None], means_of_pixels + direction * distance, noise)
    return x.t().reshape(dim, *labels.shape).contiguous()


def synthetic(
    shape: Sequence[int], instances: int, *, clean: bool = False, full: bool = False
) -> Problem:
    """One image of regions, ``shape`` being ``[D, *spatial]``."""
    background = 0.0 if full else 1 - FOREGROUND
    labels = voronoi_labels(shape[1:], instances, background=background)
    options = {"sigma": 0.12, "mixed": 0.0} if clean else {}
    return Problem(trained(labels, shape[0], **options)[None], labels[None])


def nuclei(dim: int) -> Problem:
    labels = real_labels("nuclei").to(torch.int64)
    return Problem(trained(labels[0], dim)[None], labels)


def clip(shape: Sequence[int], instances: int) -> Problem:
    """``shape`` is ``[D, T, H, W]``; every frame has the same regions."""
    frame = voronoi_labels(shape[2:], instances, background=1 - FOREGROUND)
    labels = frame.expand(*shape[1:]).contiguous()
    return Problem(trained(labels, shape[0])[None], labels[None])


def clouds(number: int, dim: int, keep: int) -> Problem:
    """Frames of the embryo as clouds, `keep` points drawn from each."""
    generator = torch.Generator().manual_seed(0)
    ids, offsets = real_clouds(number)
    drawn = [
        cloud[torch.randperm(len(cloud), generator=generator)[:keep]].to(torch.int64)
        for cloud in ids.split(offsets.diff().tolist())
    ]
    labels = torch.cat(drawn)
    return Problem(trained(labels, dim).t().contiguous(), labels, torch.arange(number + 1) * keep)


def noise(shape: Sequence[int], sigma: float) -> Problem:
    """Nothing to be found: an untrained network, or one that maps everything to one point."""
    generator = torch.Generator().manual_seed(0)
    x = sigma * torch.randn(1, *shape, generator=generator)
    return Problem(x, torch.ones(1, *shape[1:], dtype=torch.int64))


def real(file: str) -> Problem:
    """Embeddings of a trained network; of `benchmarks/data`."""
    with np.load(DATA / file) as arrays:
        embeddings, labels = (torch.from_numpy(arrays[key]) for key in ("embeddings", "labels"))
    return Problem(embeddings.float(), labels.to(torch.int64))


def _image(name: str, shape: Sequence[int], instances: int, **options: bool) -> Workload:
    words = "clean" if options.get("clean") else "3 % mixed"
    if options.get("full"):
        words = f"no background, {words}"
    about = f"[1, {', '.join(map(str, shape))}] K{instances}, {words}"
    quick = name == "small"
    return Workload(name, about, partial(synthetic, shape, instances, **options), quick)


WORKLOADS = (
    Workload("tiny", "for tests", partial(synthetic, (4, 40, 40), 5), hidden=True),
    Workload("tiny-clouds", "for tests", partial(clouds, 2, 4, 5000), hidden=True),
    Workload("crops", "real: nuclei, [4, 8, 128, 128]", partial(real, "crops_d8_it400.npz"), True),
    Workload("bars", "real: bars, [4, 8, 128, 128]", partial(real, "sticks_d8_it400.npz"), True),
    _image("small", (8, 256, 256), 30),
    _image("clean-k30", (16, 512, 512), 30, clean=True),
    _image("k30", (16, 512, 512), 30),
    Workload("k125", "nuclei, [1, 16, 512, 512] K125, 3 % mixed", partial(nuclei, 16)),
    _image("k1000", (16, 512, 512), 1000),
    _image("full-k125", (16, 512, 512), 125, full=True),
    _image("d64", (64, 256, 256), 60),
    _image("volume", (16, 32, 128, 128), 100),
    Workload("clip", "[1, 8, 8, 192, 640] K50, 3 % mixed", partial(clip, (8, 8, 192, 640), 50)),
    Workload("clouds", "4 clouds of 40,000 points, D 8", partial(clouds, 4, 8, 40_000)),
    Workload("untrained", "[1, 16, 512, 512] noise", partial(noise, (16, 512, 512), 1.5)),
    Workload("collapsed", "[1, 16, 512, 512] one point", partial(noise, (16, 512, 512), 0.01)),
)
