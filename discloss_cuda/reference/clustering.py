"""Instances from embeddings in plain PyTorch: density peaks on a sample, by brute force.

The post-processing that De Brabandere, Neven, Van Gool, "Semantic Instance Segmentation with a
Discriminative Loss Function", arXiv 1708.02551, leave open ("can easily be clustered"). Nothing
here is optimised. Every step is arithmetic that gives the same bits on every machine.

Symbols: ``v`` = delta_var, ``d`` = delta_dist, ``N`` pixels of an image, ``D`` channels, ``S`` the
size of a sample, ``n`` its points, ``m`` modes. With L_var = L_dist = 0 two pixels of an instance
are at most 2 v apart and two of different instances at least 2 (d - v), which gives the radii.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Unpack, overload

import torch
from torch import Tensor

from .._clustering_options import ClusteringOptions, Clusters, PackedClusteringOptions

FEWEST_SAMPLED = 512  # points that a late round samples at least, where S allows


class _Radii(NamedTuple):
    """Squares of the radii, in double and rounded once; float32 scalars."""

    density: Tensor  # h = 1.2 v: where the kernel of the density ends
    slope: Tensor  # 4096 / h^2: the density of a point at distance 0
    near: Tensor  # 2.02 v: points of one instance, with 1 % of slack
    far: Tensor  # 1.98 (d - v): points of two instances, with 1 % of slack
    assign: Tensor  # d: a pixel and the mode that it belongs to

    @classmethod
    def of(cls, v: float, d: float, device: torch.device) -> _Radii:
        h, near, far = 1.2 * v, 2.02 * v, 1.98 * (d - v)
        numbers = (h * h, 4096 / (h * h), near * near, far * far, d * d)
        return cls(*(torch.tensor(x, dtype=torch.float32, device=device) for x in numbers))


@dataclass(frozen=True)
class _Settings:
    """The options of a call."""

    radii: _Radii
    min_size: int
    sample: int
    max_clusters: int
    fragment: int = 0
    connected: bool = False


@dataclass
class _Found:
    """The modes of an image, row k - 1 that of label k, and whether some had no room."""

    modes: Tensor  # [m, D] float32
    classes: Tensor  # [m] int64
    source: Tensor  # [m] int64: row of the given mode, -1 for a new one
    truncated: bool = False

    def __len__(self) -> int:
        return self.modes.shape[0]

    def rows(self, index: Tensor) -> _Found:
        """Some of the modes, in the order of ``index``."""
        return _Found(self.modes[index], self.classes[index], self.source[index], self.truncated)

    def followed_by(self, new: _Found) -> _Found:
        """These modes, then those of a later round."""
        return _Found(
            torch.cat([self.modes, new.modes]),
            torch.cat([self.classes, new.classes]),
            torch.cat([self.source, new.source]),
            self.truncated or new.truncated,
        )


@overload
def cluster_embeddings(
    embeddings: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[False] = False,
    **options: Unpack[ClusteringOptions],
) -> Tensor: ...
@overload
def cluster_embeddings(
    embeddings: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[True],
    **options: Unpack[ClusteringOptions],
) -> Clusters: ...
@overload
def cluster_embeddings(
    embeddings: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: bool,
    **options: Unpack[ClusteringOptions],
) -> Tensor | Clusters: ...
def cluster_embeddings(
    embeddings: Tensor,  # [B, D, *spatial]
    foreground: Tensor | None = None,  # [B, *spatial]
    *,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    min_size: int = 20,
    sample: int = 4096,
    max_clusters: int = 1024,
    fragment: int = 0,
    connected: bool = False,
    modes: Tensor | None = None,  # [B, G, D]
    return_clusters: bool = False,
) -> Tensor | Clusters:
    """Instance ids of each pixel; see :func:`discloss_cuda.cluster_embeddings`.

    Args:
        embeddings: ``[B, D, *spatial]``, float16, bfloat16, float32 or float64.
        foreground: ``[B, *spatial]``, bool, or the class of each pixel, 0 for background.
        delta_var: ``v`` of the loss.
        delta_dist: ``d`` of the loss, at least ``2.02 v``.
        min_size: pixels that an instance has at least.
        sample: ``S``, points that a round looks at, at most.
        max_clusters: ``M``, instances that are kept at most, the heaviest.
        fragment: components of fewer pixels take the label around them.
        connected: every component is an instance of its own.
        modes: ``[B, G, D]``, modes known before, which come first and stay where they are.
        return_clusters: return :class:`discloss_cuda.Clusters`.

    Returns:
        ``[B, *spatial]`` int32, or :class:`discloss_cuda.Clusters`.
    """
    radii = _Radii.of(delta_var, delta_dist, embeddings.device)
    settings = _Settings(radii, min_size, sample, max_clusters, fragment, connected)
    images = [
        _image(
            embeddings[b].flatten(1).T,
            None if foreground is None else foreground[b].flatten(),
            tuple(embeddings.shape[2:]),
            embeddings.new_empty(0, embeddings.shape[1]) if modes is None else modes[b],
            settings,
        )
        for b in range(embeddings.shape[0])
    ]
    clusters = _stack(images, embeddings, max_clusters)
    ids = clusters.ids.reshape(embeddings.shape[:1] + embeddings.shape[2:])
    return clusters._replace(ids=ids) if return_clusters else ids


@overload
def cluster_embeddings_packed(
    embeddings: Tensor,
    offsets: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[False] = False,
    **options: Unpack[PackedClusteringOptions],
) -> Tensor: ...
@overload
def cluster_embeddings_packed(
    embeddings: Tensor,
    offsets: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[True],
    **options: Unpack[PackedClusteringOptions],
) -> Clusters: ...
def cluster_embeddings_packed(
    embeddings: Tensor,  # [N_total, D]
    offsets: Tensor,  # [B + 1]
    foreground: Tensor | None = None,  # [N_total]
    *,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    min_size: int = 20,
    sample: int = 4096,
    max_clusters: int = 1024,
    modes: Tensor | None = None,  # [B, G, D]
    return_clusters: bool = False,
) -> Tensor | Clusters:
    """Instance ids of the points of ``B`` clouds, cloud b being ``offsets[b]:offsets[b + 1]``.

    ``foreground`` is ``[N_total]``; the other arguments and the result are those of
    :func:`cluster_embeddings`, with ids ``[N_total]``.
    """
    settings = _Settings(
        _Radii.of(delta_var, delta_dist, embeddings.device), min_size, sample, max_clusters
    )
    clouds = [
        _image(
            embeddings[first:last],
            None if foreground is None else foreground[first:last],
            (last - first,),
            embeddings.new_empty(0, embeddings.shape[1]) if modes is None else modes[b],
            settings,
        )
        for b, (first, last) in enumerate(itertools.pairwise(offsets.tolist()))
    ]
    clusters = _stack(clouds, embeddings, max_clusters)
    return clusters if return_clusters else clusters.ids


def _image(
    embeddings: Tensor,  # [N, D]
    foreground: Tensor | None,  # [N]
    spatial: tuple[int, ...],
    given: Tensor,  # [G, D]
    settings: _Settings,
) -> tuple[Tensor, _Found]:
    """Ids ``[N]`` of an image, and its clusters: row k - 1 is id k."""
    x = embeddings.detach().to(torch.float32)
    classes = torch.ones_like(x[:, 0], dtype=torch.int64)
    if foreground is not None:
        classes = foreground.to(torch.int64)
    classes = torch.where(x.isfinite().all(1), classes, 0)
    labels, found = _rounds(x, classes, given.detach().to(torch.float32), settings)
    if settings.fragment > 0:
        for _ in range(2):
            labels = _without_fragments(labels, classes != 0, spatial, settings.fragment)
    part, rows = labels, found
    if settings.connected:
        part, rows = _components_as_labels(labels, found, spatial, settings)
    ids, order = _in_order_of_first_pixels(part)
    return ids, rows.rows(order)


# --- rounds --------------------------------------------------------------------------------------


def _rounds(
    x: Tensor,  # [N, D]
    classes: Tensor,  # [N], 0: background, or not finite
    given: Tensor,  # [G, D]
    settings: _Settings,
) -> tuple[Tensor, _Found]:
    """Labels ``[N]`` and modes; label 0 is of no mode."""
    labels = torch.zeros_like(classes)
    found = _Found(x[:0], classes[:0], classes[:0])

    def settle(left: Tensor, new: _Found) -> int:
        nonlocal found
        new = _supported(x[left], classes[left], new, settings)
        k, _ = _nearest(x[left], classes[left], new, settings.radii.assign)
        labels[left] = torch.where(k >= 0, len(found) + 1 + k, 0)
        found = found.followed_by(new)
        return len(new)

    left = classes.nonzero().flatten()
    if given.shape[0] > 0:
        settle(left, _given_modes(x[left], classes[left], given, settings))
    first = 0
    full = False  # whether this round repeats one that kept no mode
    while True:
        left = ((classes != 0) & (labels == 0)).nonzero().flatten()
        pixels = left.shape[0]
        if pixels < settings.min_size:
            return labels, found
        first = first or pixels
        size = min(settings.sample, max(FEWEST_SAMPLED, 4 * settings.sample * pixels // first))
        size = settings.sample if full else size
        step = -(-pixels // size)
        candidates, weight = _trees(x[left[::step]], classes[left[::step]], settings.radii)
        kept = settle(left, _keep(candidates, weight, step, found, settings))
        if kept == 0 and (step == 1 or size == settings.sample):
            return labels, found
        full = kept == 0


def _given_modes(x: Tensor, classes: Tensor, given: Tensor, settings: _Settings) -> _Found:
    """Round 0: rows that are finite, each of the class of the pixel nearest to it."""
    source = given.isfinite().all(1).nonzero().flatten()
    truncated = source.shape[0] > settings.max_clusters
    source = source[: settings.max_clusters]
    if x.shape[0] == 0:
        source, truncated = source[:0], False
    of_class = classes.new_zeros(source.shape[0])
    for i, row in enumerate(source.tolist()):
        distances = torch.cat(
            [_square_distances(given[row][None], x[rows])[0] for rows in _chunks(x.shape[0], 1)]
        )
        of_class[i] = classes[distances.argmin()]  # of equal ones the first
    return _Found(given[source], of_class, source, truncated)


def _trees(points: Tensor, classes: Tensor, radii: _Radii) -> tuple[_Found, Tensor]:
    """Steps 2 and 3: candidates in the order of their first members, and their weights ``[m]``."""
    n = points.shape[0]
    index = torch.arange(n, device=points.device)
    density = torch.zeros_like(index)
    for rows in _chunks(n, n):
        s = _square_distances(points[rows], points)
        inside = (s < radii.density) & (classes[rows, None] == classes)
        height = torch.where(inside, (radii.density - s) * radii.slope, 0.0)
        density[rows] = height.to(torch.int64).sum(1)

    parent = index.clone()
    for rows in _chunks(n, n):
        s = _square_distances(points[rows], points)
        mine = density[rows, None]
        denser = (density > mine) | ((density == mine) & (index < index[rows, None]))
        denser &= classes[rows, None] == classes
        nearest, at = torch.where(denser, s, torch.inf).min(1)  # of equal ones the first
        parent[rows] = torch.where(nearest < radii.near, at, index[rows])

    while not torch.equal(parent[parent], parent):
        parent = parent[parent]
    first_member = torch.full_like(index, n).scatter_reduce(0, parent, index, "amin")[parent]
    members, tree = torch.unique(first_member, return_inverse=True)
    weight = torch.bincount(tree, minlength=members.shape[0])

    # Sums in fixed point: their order does not matter.
    exponent = 40 - math.frexp(float(points.abs().max()))[1]
    fixed = torch.round(points.to(torch.float64) * 2.0**exponent).to(torch.int64)
    sums = fixed.new_zeros(members.shape[0], points.shape[1]).index_add(0, tree, fixed)
    means = (sums.to(torch.float64) / weight[:, None] * 2.0**-exponent).to(torch.float32)
    return _Found(means, classes[members], torch.full_like(members, -1)), weight


def _keep(
    candidates: _Found, weight: Tensor, step: int, found: _Found, settings: _Settings
) -> _Found:
    """Step 4: the heaviest first, and of the others those that are apart."""
    half = settings.min_size // step // 2
    least = max(2, half) if step > 1 else max(1, settings.min_size // 2)
    heaviest_first = torch.sort(weight, descending=True, stable=True).indices.tolist()
    kept: list[int] = []
    for k in heaviest_first:
        if weight[k] < least:
            break
        mode, of_class = candidates.modes[k : k + 1], candidates.classes[k]
        too_near = _square_distances(mode, candidates.modes[kept])[0] < settings.radii.near
        not_far = _square_distances(mode, found.modes)[0] < settings.radii.far
        if (too_near & (candidates.classes[kept] == of_class)).any():
            continue
        if (not_far & (found.classes == of_class)).any():
            continue
        if len(found) + len(kept) == settings.max_clusters:
            candidates.truncated = True
            break
        kept.append(k)
    return candidates.rows(weight.new_tensor(kept, dtype=torch.int64))


def _supported(x: Tensor, classes: Tensor, new: _Found, settings: _Settings) -> _Found:
    """Step 5: the modes that are the nearest of enough pixels near them."""
    k, near = _nearest(x, classes, new, settings.radii.near)
    support = torch.bincount(k[near], minlength=len(new))
    return new.rows((support >= settings.min_size).nonzero().flatten())


def _nearest(x: Tensor, classes: Tensor, new: _Found, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pixel its nearest mode (ties: the lower), -1 if none is nearer, and which are."""
    k = torch.full_like(classes, -1)
    if len(new) > 0:
        for rows in _chunks(x.shape[0], len(new)):
            s = _square_distances(x[rows], new.modes)
            s = torch.where(classes[rows, None] == new.classes, s, torch.inf)
            nearest, at = s.min(1)  # of equal ones the first
            k[rows] = torch.where(nearest < radius, at, -1)
    return k, k >= 0


def _square_distances(a: Tensor, b: Tensor) -> Tensor:
    """``[n, D], [m, D] -> [n, m]``; channel after channel, each operation rounded to float32."""
    s = a.new_zeros(a.shape[0], b.shape[0])
    for channel in range(a.shape[1]):
        t = a[:, channel, None] - b[:, channel]
        s = s + t * t
    return s


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows, so that a table of them does not grow beyond some megabytes."""
    height = max(1, 2**20 // max(columns, 1))
    return (slice(first, first + height) for first in range(0, rows, height))


# --- on the grid ---------------------------------------------------------------------------------


def _without_fragments(
    labels: Tensor, foreground: Tensor, spatial: tuple[int, ...], fragment: int
) -> Tensor:
    """Small components with the label of the large one with which they share most faces.

    labels, foreground: ``[N]``. A component without such a neighbour stays as it is.
    """
    component = _components(labels, foreground, spatial)
    size = torch.bincount(component[foreground], minlength=component.shape[0])
    small = foreground & (size[component] < fragment)
    large = foreground & (labels > 0) & (size[component] >= fragment)
    a, b = _faces(spatial, labels.device)
    a, b = torch.cat([a, b]), torch.cat([b, a])
    borders = small[a] & large[b]
    pairs = torch.stack([component[a[borders]], component[b[borders]]], 1)
    pairs, length = torch.unique(pairs, dim=0, return_counts=True)
    best: dict[int, tuple[int, int]] = {}  # of a small component: border, minus the label
    for (fragment_of, of_large), faces in zip(pairs.tolist(), length.tolist(), strict=True):
        border = (faces, -int(labels[of_large]))
        best[fragment_of] = max(border, best.get(fragment_of, border))
    renamed = labels.clone()
    for fragment_of, (_, label) in best.items():
        renamed[component == fragment_of] = -label
    return renamed


def _components_as_labels(
    labels: Tensor, found: _Found, spatial: tuple[int, ...], settings: _Settings
) -> tuple[Tensor, _Found]:
    """Labels by component, small ones 0, and the mode of each; the largest where room is short."""
    component = _components(labels, labels > 0, spatial)
    size = torch.bincount(component[labels > 0], minlength=component.shape[0])
    largest_first = torch.sort(size, descending=True, stable=True).indices
    enough = largest_first[size[largest_first] >= settings.min_size]
    kept = enough[: settings.max_clusters]
    number = torch.zeros_like(component)
    number[kept] = torch.arange(1, kept.shape[0] + 1, device=labels.device)
    rows = found.rows(labels[kept] - 1)
    rows.truncated = found.truncated or enough.shape[0] > kept.shape[0]
    return torch.where(labels > 0, number[component], 0), rows


def _components(labels: Tensor, foreground: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """``[N]``: the first pixel of each pixel's component; of the background, the pixel itself."""
    a, b = _faces(spatial, labels.device)
    same = foreground[a] & foreground[b] & (labels[a] == labels[b])
    a, b = a[same], b[same]
    first = torch.arange(labels.shape[0], device=labels.device)
    while True:
        least = torch.minimum(first[a], first[b])
        lower = first.scatter_reduce(0, first[a], least, "amin")
        lower = lower.scatter_reduce(0, first[b], least, "amin")
        lower = lower[lower]
        if torch.equal(lower, first):
            return first
        first = lower


def _faces(spatial: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """All pairs of pixels that share a face, the earlier and the later."""
    index = torch.arange(math.prod(spatial), device=device).reshape(spatial)
    earlier = [index.narrow(i, 0, max(n - 1, 0)).flatten() for i, n in enumerate(spatial)]
    later = [index.narrow(i, min(n, 1), max(n - 1, 0)).flatten() for i, n in enumerate(spatial)]
    return torch.cat(earlier), torch.cat(later)


# --- results -------------------------------------------------------------------------------------


def _in_order_of_first_pixels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ids ``[N]`` from 1, and the row (label - 1) of each."""
    present, inverse = torch.unique(labels, return_inverse=True)
    index = torch.arange(labels.shape[0], device=labels.device)
    first = torch.full_like(present, labels.shape[0]).scatter_reduce(0, inverse, index, "amin")
    order = first.argsort()
    order = order[present[order] > 0]
    id_of = torch.zeros_like(present)
    id_of[order] = torch.arange(1, order.shape[0] + 1, device=labels.device)
    return id_of[inverse], present[order] - 1


def _stack(images: list[tuple[Tensor, _Found]], embeddings: Tensor, rows: int) -> Clusters:
    """The results of a batch; ids ``[N_total]``."""

    def table(*columns: int, fill: int = 0, dtype: torch.dtype = torch.int32) -> Any:
        shape = (len(images), *columns)
        return torch.full(shape, fill, dtype=dtype, device=embeddings.device)

    clusters = Clusters(
        ids=torch.cat([ids for ids, _ in images] or [table()]).to(torch.int32),
        modes=table(rows, embeddings.shape[1], dtype=torch.float32),
        counts=table(rows),
        classes=table(rows, dtype=torch.int64),
        source=table(rows, fill=-1),
        number=table(),
        truncated=table(dtype=torch.bool),
    )
    for b, (ids, found) in enumerate(images):
        k = len(found)
        clusters.modes[b, :k] = found.modes
        clusters.counts[b, :k] = torch.bincount(ids, minlength=k + 1)[1:].to(torch.int32)
        clusters.classes[b, :k] = found.classes
        clusters.source[b, :k] = found.source.to(torch.int32)
        clusters.number[b] = k
        clusters.truncated[b] = found.truncated
    return clusters
