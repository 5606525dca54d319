"""The definition of `cluster_embeddings` in dense PyTorch, written for speed.

Distances are products of matrices (`torch.cdist`), so the last bits differ from the definition's:
a point on a radius may fall on its other side. No classes, given modes, or grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .clustering_workloads import DELTA_DIST, DELTA_VAR

SAMPLE, FEWEST, MIN_SIZE, MOST = 4096, 512, 20, 1024
ROWS = 16_384  # pixels whose distances to all modes are in memory at once


def cluster(x: Tensor) -> Tensor:
    """Points ``[n, D]`` -> labels ``[n]`` int64, 0 for none."""
    near, far = 2.02 * DELTA_VAR, 1.98 * (DELTA_DIST - DELTA_VAR)
    labels = x.new_zeros(len(x), dtype=torch.int64)
    modes = x[:0]
    full = False
    while len(left := (labels == 0).nonzero()[:, 0]) >= MIN_SIZE:
        size = SAMPLE if full else min(SAMPLE, max(FEWEST, 4 * SAMPLE * len(left) // len(x)))
        step = -(-len(left) // size)
        new, weight = _trees(x[left[::step]], 1.2 * DELTA_VAR, near)
        least = max(2, MIN_SIZE // step // 2) if step > 1 else max(1, MIN_SIZE // 2)
        new = _keep(new[weight >= least], weight[weight >= least], modes, near, far)
        new = new[: MOST - len(modes)]
        k, distance = _nearest(x[left], new)
        support = torch.bincount(k[distance < near], minlength=len(new))
        if (support < MIN_SIZE).any():
            new = new[support >= MIN_SIZE]
            k, distance = _nearest(x[left], new)
        if len(new) == 0:
            if step == 1 or full or size == SAMPLE:
                break
            full = True
            continue
        full = False
        labels[left] = torch.where(distance < DELTA_DIST, k + len(modes) + 1, 0)
        modes = torch.cat([modes, new])
    return labels


def _trees(points: Tensor, radius: float, near: float) -> tuple[Tensor, Tensor]:
    """Means ``[m, D]`` and weights ``[m]`` of the trees of a sample."""
    square = torch.cdist(points, points).square_()
    density = (radius**2 - square).clamp_(min=0).mul_(4096 / radius**2).to(torch.int32).sum(1)
    index = torch.arange(len(points), device=points.device)
    rank = torch.empty_like(index)
    rank[torch.sort(density, descending=True, stable=True).indices] = index
    square.masked_fill_(rank[None] >= rank[:, None], torch.inf)
    nearest, at = square.min(1)
    parent = torch.where(nearest < near**2, at, index)
    while not torch.equal(grand := parent[parent], parent):
        parent = grand
    _, tree, weight = torch.unique(parent, return_inverse=True, return_counts=True)
    sums = points.new_zeros(len(weight), points.shape[1]).index_add_(0, tree, points)
    return sums / weight[:, None], weight


def _keep(modes: Tensor, weight: Tensor, before: Tensor, near: float, far: float) -> Tensor:
    """The heaviest first; what is near to a kept one, or not far from one before, is dropped."""
    modes = modes[torch.sort(weight, descending=True, stable=True).indices]
    if len(before):
        modes = modes[torch.cdist(modes, before).min(1).values >= far]
    too_near = torch.cdist(modes, modes) < near
    dropped = torch.zeros(len(modes), dtype=torch.bool, device=modes.device)
    for k in too_near.triu(1).any(1).nonzero()[:, 0].tolist():
        if not dropped[k]:
            dropped[k + 1 :] |= too_near[k, k + 1 :]
    return modes[~dropped]


def _nearest(x: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest mode of each pixel ``[n]``, and its distance."""
    if len(modes) == 0:
        return x.new_zeros(len(x), dtype=torch.int64), x.new_full((len(x),), torch.inf)
    found = [torch.cdist(rows, modes).min(1) for rows in x.split(ROWS)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
