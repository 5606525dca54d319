"""Embeddings to cluster: as a trained network leaves them, with mixed pixels, and at loss 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cases import voronoi_labels


@dataclass(frozen=True)
class Exact:
    """An image whose result is known: L_var = L_dist = 0."""

    embeddings: Tensor  # [1, D, H, W]
    labels: Tensor  # [1, H, W] int32, ids in the order of first pixels
    options: dict[str, Any]


def separate_means(count: int, dim: int, generator: np.random.Generator) -> np.ndarray:
    """``[count, dim]``, at least 3 apart, on a grid of up to four channels in random order."""
    axes = min(dim, 4)
    side = int(np.ceil(count ** (1 / axes)))
    while side**axes < count:
        side += 1
    grid = np.stack(np.unravel_index(generator.permutation(side**axes)[:count], (side,) * axes), 1)
    means = np.zeros((count, dim))
    means[:, generator.permutation(dim)[:axes]] = 3.0 * (grid - side // 2)
    return means


def in_balls(number: int, dim: int, radius: float, generator: np.random.Generator) -> np.ndarray:
    """``[number, dim]`` in random directions; half of them exactly at ``radius``, others nearer."""
    direction = generator.normal(size=(number, dim))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    nearer = np.where(generator.random(number) < 0.5, 1.0, generator.random(number))
    return direction * (radius * nearer)[:, None]


def ids_by_first_pixel(labels: np.ndarray) -> np.ndarray:
    """Labels ``[N]`` renamed to 1, 2, ... as they appear; 0 stays."""
    present, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = [k for k in np.argsort(first) if present[k] != 0]
    ids = np.zeros(len(present), np.int32)
    ids[order] = np.arange(1, len(order) + 1)
    return ids[inverse]


def exact_case(seed: int) -> Exact:
    """Loss 0 in the worst order: an id drawn for each pixel, pixels up to 0.49 from the centre."""
    generator = np.random.default_rng(seed)
    dim = int(generator.choice([1, 2, 3, 5, 8, 16, 17, 32, 64]))
    sample = int(generator.choice([512, 800, 1024, 2048]))
    min_size = int(generator.choice([1, 2, 5, 20]))
    height, width = int(generator.integers(4, 90)), int(generator.integers(1, 90))
    count = int(generator.integers(1, min(sample // 2, 400) + 1))
    labels = generator.integers(0, count + 1, height * width)
    if seed % 3 == 1:  # a few large ones among many small
        labels = np.minimum(labels, generator.integers(0, count + 1, height * width))
    if seed % 2:
        labels = np.sort(labels)
    pixels = np.bincount(labels, minlength=count + 1)
    labels[pixels[labels] < min_size] = 0
    means = separate_means(count + 1, dim, generator)
    x = means[labels] + in_balls(height * width, dim, 0.49, generator)
    shape = (1, dim, height, width)
    return Exact(
        torch.from_numpy(x.T.astype(np.float32).reshape(shape)),
        torch.from_numpy(ids_by_first_pixel(labels).reshape(1, height, width)),
        {"min_size": min_size, "sample": sample},
    )


def hard_case(side: int = 1024, small: int = 1000) -> Exact:
    """One large instance and many of 20 pixels: a first sample sees next to none of these."""
    generator = np.random.default_rng(0)
    labels = np.ones(side * side, np.int64)
    places = generator.permutation(side * side)[: 20 * small]
    labels[places] = np.repeat(np.arange(2, small + 2), 20)
    means = separate_means(small + 2, 4, generator)
    x = means[labels] + in_balls(len(labels), 4, 0.49, generator)
    return Exact(
        torch.from_numpy(x.T.astype(np.float32).reshape(1, 4, side, side)),
        torch.from_numpy(ids_by_first_pixel(labels).reshape(1, side, side)),
        {"min_size": 20},
    )


def repeated_case() -> Exact:
    """A round that keeps no mode: its sample has one point of each instance that it sees.

    Round 1 samples every 52nd pixel, all of the one large instance, and leaves 600 instances of 8
    pixels. Round 2 samples every 10th of those pixels, 480 points, each of another instance.
    """
    generator = np.random.default_rng(0)
    pixels, step, small, size = 52 * 2048, 52, 600, 8
    order = np.full(small * size, -1)
    order[::10] = np.arange(480)
    rest = np.repeat(np.arange(small), size - (np.arange(small) < 480))
    order[order < 0] = generator.permutation(rest)
    labels = np.ones(pixels, np.int64)
    unseen = np.flatnonzero(np.arange(pixels) % step != 0)
    labels[unseen[: len(order)]] = order + 2
    means = separate_means(small + 2, 4, generator)
    x = means[labels] + in_balls(pixels, 4, 0.49, generator)
    return Exact(
        torch.from_numpy(x.T.astype(np.float32).reshape(1, 4, step, -1)),
        torch.from_numpy(ids_by_first_pixel(labels).reshape(1, step, -1)),
        {"min_size": 8, "sample": 2048},
    )


def trained(
    shape: Sequence[int],
    instances: int,
    dim: int,
    *,
    seed: int = 0,
    background: float = 0.5,
    spread: float = 0.25,
    mixed: float = 0.03,
    images: int = 1,
) -> tuple[Tensor, Tensor]:
    """Embeddings ``[images, dim, *shape]`` as this loss leaves them, labels ``[images, *shape]``.

    Pixels lie around means that are at least 3 apart, at distances \\|N(0, ``spread``)\\|; a share
    ``mixed`` of the foreground lies between its mean and another; the background is anywhere.
    """
    generator = np.random.default_rng(seed)
    labels = torch.stack(
        [
            voronoi_labels(shape, instances, seed=seed + b, background=background)
            for b in range(images)
        ]
    )
    flat = labels.numpy().reshape(images, -1)
    x = np.empty((images, flat.shape[1], dim), np.float32)
    for b in range(images):
        means = separate_means(instances + 1, dim, generator)
        x[b] = generator.normal(size=x[b].shape)
        x[b] /= np.linalg.norm(x[b], axis=1, keepdims=True) + 1e-9
        x[b] *= np.abs(generator.normal(0, spread, (x.shape[1], 1)))
        x[b] += means[flat[b]]
        behind = flat[b] == 0
        x[b, behind] = generator.normal(0, 1.5, (behind.sum(), dim))
        inside = np.flatnonzero(~behind)
        between = generator.permutation(inside)[: int(mixed * len(inside))]
        towards = (
            means[generator.integers(1, instances + 1, len(between))] - means[flat[b, between]]
        )
        x[b, between] += towards * generator.uniform(0.2, 0.8, (len(between), 1))
    embeddings = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)))
    return embeddings.reshape(images, dim, *shape), labels
