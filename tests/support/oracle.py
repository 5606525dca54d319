"""The loss and its gradient once more, in NumPy float64 with plain loops.

It shares no code with the package: what every other implementation is judged against. A gradient
comes with its *slack*, how far a right gradient may lie from this one because a derivative jumps
(a sign for norm 1, a direction for norm 2) nearer to the data than rounding can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Upstream:
    """What flows back into one image: dL, dVar, dDist, dReg."""

    loss: float = 1.0
    variance: float = 0.0
    distance: float = 0.0
    regularization: float = 0.0


@dataclass(frozen=True)
class Options:
    """The hyper-parameters of a call."""

    delta_var: float = 0.5
    delta_dist: float = 1.5
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 0.001
    norm: int = 2
    ignore_label: int | Sequence[int] | None = None


@dataclass(frozen=True)
class ImageResult:
    """One image: the loss, the unweighted terms, the gradient ``[D, N]`` and its slack."""

    loss: float
    variance: float
    distance: float
    regularization: float
    grad: Array
    slack: Array


def _length(v: Array, norm: int) -> Array:
    """``|v|`` of each column, ``[D, N] -> [N]``."""
    return np.abs(v).sum(axis=0) if norm == 1 else np.sqrt((v * v).sum(axis=0))


def _direction(v: Array, norm: int) -> Array:
    """``d|v|/dv`` of each column, ``[D, N] -> [D, N]``, 0 where ``v`` is 0."""
    if norm == 1:
        return np.sign(v)
    length = _length(v, norm)
    return v / np.where(length == 0, 1.0, length)


def _jump(v: Array, norm: int, resolution: float) -> Array:
    """How far ``d|v|/dv`` jumps within ``resolution`` of ``v``, ``[D, N] -> [D, N]``.

    Exactly at 0 there is a definite answer, 0, and no excuse.
    """
    near = np.abs(v) if norm == 1 else np.broadcast_to(_length(v, norm), v.shape)
    return np.where((near > 0) & (near <= resolution), 2.0, 0.0)


def _hinge(z: Array) -> Array:
    """``[z]_+``; NaN stays NaN."""
    return np.asarray(np.where(z <= 0, 0.0, z))


def _ignored(options: Options) -> set[int]:
    if options.ignore_label is None:
        return set()
    if isinstance(options.ignore_label, int):
        return {options.ignore_label}
    return {int(label) for label in options.ignore_label}


def image_loss(
    x: Array,  # [D, N]
    ids: Sequence[int],  # N Python ints: no width, no sign bit to go wrong
    options: Options,
    upstream: Upstream | None = None,
    resolution: float = 0.0,
) -> ImageResult:
    """One image, instance by instance, formula by formula.

    ``resolution`` is the width of the kink band: the distance at which the precision under test
    can no longer tell on which side of a jump it is.
    """
    o = options
    u = upstream or Upstream()
    grad, slack = np.zeros_like(x), np.zeros_like(x)
    members: dict[int, list[int]] = {}
    for pixel, label in enumerate(ids):
        if label not in _ignored(o):
            members.setdefault(label, []).append(pixel)
    k = len(members)
    if k == 0:
        return ImageResult(0.0, 0.0, 0.0, 0.0, grad, slack)

    pixels = [np.asarray(p) for p in members.values()]
    mu = [x[:, p].sum(axis=1, keepdims=True) / len(p) for p in pixels]  # [D, 1] each
    alpha, beta, gamma = (
        o.alpha * u.loss + u.variance,
        o.beta * u.loss + u.distance,
        o.gamma * u.loss + u.regularization,
    )
    variance = distance = regularization = 0.0
    for a in range(k):
        n = len(pixels[a])
        v = x[:, pixels[a]] - mu[a]
        h = _hinge(_length(v, o.norm) - o.delta_var)
        variance += float((h * h).sum()) / n / k
        weight = 2 * alpha / (k * n) * h
        g = weight * _direction(v, o.norm)  # the direct pull on each pixel
        g_slack = np.abs(weight) * _jump(v, o.norm, resolution)
        of_mean = -g.sum(axis=1, keepdims=True)  # P_k + R_k - S_k
        of_mean_slack = g_slack.sum(axis=1, keepdims=True)
        v = mu[a] - np.hstack([mu[b] for b in range(k) if b != a] or [mu[a][:, :0]])  # [D, K - 1]
        h = _hinge(2 * o.delta_dist - _length(v, o.norm))
        distance += float((h * h).sum()) / max(k * (k - 1), 1)
        weight = -4 * beta / max(k * (k - 1), 1) * h
        of_mean += (weight * _direction(v, o.norm)).sum(axis=1, keepdims=True)
        push_slack = np.abs(weight) * _jump(v, o.norm, resolution)
        of_mean_slack += push_slack.sum(axis=1, keepdims=True)
        regularization += float(_length(mu[a], o.norm).sum()) / k
        of_mean += gamma / k * _direction(mu[a], o.norm)
        of_mean_slack += abs(gamma / k) * _jump(mu[a], o.norm, resolution)
        grad[:, pixels[a]] = g + of_mean / n
        slack[:, pixels[a]] = g_slack + of_mean_slack / n
    loss = o.alpha * variance + o.beta * distance + o.gamma * regularization
    return ImageResult(loss, variance, distance, regularization, grad, slack)


@dataclass(frozen=True)
class BatchResult:
    """A batch: loss and terms ``[B]``, gradient and slack of the shape of the embeddings."""

    loss: Array
    variance: Array
    distance: Array
    regularization: Array
    grad: Array
    slack: Array


def _collect(images: Sequence[ImageResult], grad: Array, slack: Array) -> BatchResult:
    def column(name: str) -> Array:
        return np.array([getattr(image, name) for image in images], dtype=np.float64)

    return BatchResult(
        column("loss"),
        column("variance"),
        column("distance"),
        column("regularization"),
        grad,
        slack,
    )


def batch_loss(
    embeddings: Array,  # [B, D, *spatial]
    labels: NDArray[np.generic],  # [B, *spatial]
    options: Options,
    upstream: Sequence[Upstream] | None = None,
    resolution: Sequence[float] | None = None,
) -> BatchResult:
    """Each image of a dense batch on its own. ``upstream`` and ``resolution``: one an image."""
    b, d = embeddings.shape[:2]
    images = [
        image_loss(
            embeddings[i].reshape(d, -1),
            labels[i].ravel().tolist(),
            options,
            upstream[i] if upstream else None,
            resolution[i] if resolution else 0.0,
        )
        for i in range(b)
    ]
    grad, slack = np.zeros_like(embeddings), np.zeros_like(embeddings)
    for i, image in enumerate(images):
        grad[i] = image.grad.reshape(embeddings.shape[1:])
        slack[i] = image.slack.reshape(embeddings.shape[1:])
    return _collect(images, grad, slack)


def packed_loss(
    embeddings: Array,  # [N_total, D]
    labels: NDArray[np.generic],  # [N_total]
    offsets: Sequence[int],  # B + 1
    options: Options,
    upstream: Sequence[Upstream] | None = None,
    resolution: Sequence[float] | None = None,
) -> BatchResult:
    """Each cloud of a packed batch on its own."""
    images = []
    grad, slack = np.zeros_like(embeddings), np.zeros_like(embeddings)
    for i in range(len(offsets) - 1):
        cloud = slice(offsets[i], offsets[i + 1])
        image = image_loss(
            embeddings[cloud].T,
            labels[cloud].tolist(),
            options,
            upstream[i] if upstream else None,
            resolution[i] if resolution else 0.0,
        )
        grad[cloud], slack[cloud] = image.grad.T, image.slack.T
        images.append(image)
    return _collect(images, grad, slack)
