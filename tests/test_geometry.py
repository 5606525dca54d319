"""What the paper promises of embeddings at loss 0, on real label maps, claim by claim.

The embeddings are free: no network, every pixel is moved by its own gradient until the loss is 0.
Source: De Brabandere et al., arXiv 1708.02551, sections 3.1 and 3.2, with delta_dist > 2 delta_var.
"""

from __future__ import annotations

import functools

import pytest
import torch
from support.cases import real_labels
from torch import Tensor

from discloss_cuda import discriminative_loss
from discloss_cuda.metrics import instance_scores
from discloss_cuda.reference import cluster_embeddings

DELTA_VAR, DELTA_DIST = 0.5, 1.5

MAPS = {  # [1, *spatial]; 0 is background, and ignored
    "nuclei": lambda: real_labels("nuclei")[:, 200:280, 200:290],
    "nuclei_batch": lambda: real_labels("nuclei_batch")[1:2, :90, 100:190],
    "volume": lambda: real_labels("volume")[:, 8:20, 15:40, 15:45],
    "embryo_clip": lambda: real_labels("embryo")[None, :4, 10:16, 35:60, 60:95],
}


@functools.cache
def _at_loss_zero(name: str) -> tuple[Tensor, Tensor]:
    """Embeddings ``[1, D, *spatial]`` float64 of loss 0 and their labels ``[1, *spatial]``."""
    labels = MAPS[name]().to(torch.int64)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, *labels.shape[1:])
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(1000):
        terms = discriminative_loss(
            x,
            labels,
            delta_var=DELTA_VAR,
            delta_dist=DELTA_DIST,
            gamma=0.0,
            ignore_label=0,
            return_terms=True,
        )
        if terms.loss.item() == 0.0:
            break
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
    assert terms.variance.item() == terms.distance.item() == 0.0
    return x.detach(), labels


def _foreground(name: str) -> tuple[Tensor, Tensor]:
    """Embeddings ``[N, D]`` and ids ``[N]`` of the pixels of instances."""
    x, labels = _at_loss_zero(name)
    inside = labels[0] != 0
    return x[0][:, inside].t().contiguous(), labels[0][inside]


def _means(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """``[K, D]``, and the instance of each pixel ``[N]``."""
    _, instance = torch.unique(ids, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(instance).to(x.dtype)
    return (one_hot.t() @ x) / one_hot.sum(0)[:, None], instance


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


ROUNDING = 1e-12  # of a distance of a few units in float64, by any order of summation

each_map = pytest.mark.parametrize("name", MAPS)


@each_map
def test_the_maps_have_instances_of_many_sizes(name: str) -> None:
    """What is shown below is shown on maps that are not trivial."""
    _, ids = _foreground(name)
    sizes = torch.unique(ids, return_counts=True)[1]
    assert len(sizes) >= 5
    assert sizes.max() >= 4 * sizes.min()


@each_map
def test_every_pixel_is_within_delta_var_of_its_mean(name: str) -> None:
    x, ids = _foreground(name)
    means, instance = _means(x, ids)
    radius = torch.linalg.vector_norm(x - means[instance], dim=1)
    assert radius.max().item() <= DELTA_VAR + ROUNDING
    assert radius.max().item() > DELTA_VAR / 2, "expected instances that fill their ball"


@each_map
def test_means_are_two_delta_dist_apart(name: str) -> None:
    means, _ = _means(*_foreground(name))
    between = _distances(means, means).fill_diagonal_(torch.inf)
    assert between.min().item() >= 2 * DELTA_DIST - ROUNDING


@each_map
def test_every_pixel_is_nearer_to_all_of_its_instance_than_to_any_other(name: str) -> None:
    """And by a margin: at most 2 delta_var from these, at least 2 (delta_dist - delta_var) from
    those, so any radius between the two around any pixel of an instance holds just the instance."""
    assert DELTA_DIST > 2 * DELTA_VAR
    x, ids = _foreground(name)
    for pixels, own in zip(x.split(512), ids.split(512), strict=True):
        distance = _distances(pixels, x)
        same = own[:, None] == ids[None]
        farthest = distance.where(same, 0.0).max(1).values
        nearest = distance.where(~same, torch.inf).min(1).values
        assert (farthest < nearest).all()
        assert farthest.max().item() <= 2 * DELTA_VAR + ROUNDING
        assert nearest.min().item() >= 2 * (DELTA_DIST - DELTA_VAR) - ROUNDING


@each_map
def test_a_threshold_around_any_pixel_gives_the_instances(name: str) -> None:
    """Section 3.2: take a pixel that has no id, give one to all within the threshold, repeat."""
    x, ids = _foreground(name)
    found = torch.zeros_like(ids)
    generator = torch.Generator().manual_seed(1)
    for pixel in torch.randperm(len(x), generator=generator).tolist():
        if found[pixel] == 0:
            near = torch.linalg.vector_norm(x - x[pixel], dim=1) < 2 * DELTA_DIST - 2 * DELTA_VAR
            found[near & (found == 0)] = found.max() + 1
    scores = instance_scores(found[None], ids[None])
    assert scores.ari.item() == scores.ap.item() == scores.sbd.item() == 1.0
    assert scores.dic.item() == 0


@each_map
@pytest.mark.parametrize("sample", [4096, 512])
def test_clustering_is_exact(name: str, sample: int) -> None:
    """Also from a sample of a few of the pixels, and in any order of the pixels."""
    x, labels = _at_loss_zero(name)
    order = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(2))
    for where in (slice(None), order):
        embeddings, ids = x.flatten(2)[:, :, where], labels.flatten(1)[:, where]
        found = cluster_embeddings(
            embeddings,
            ids != 0,
            delta_var=DELTA_VAR,
            delta_dist=DELTA_DIST,
            min_size=1,
            sample=sample,
        )
        scores = instance_scores(found, ids)
        assert scores.ari.item() == scores.ap.item() == scores.sbd.item() == 1.0
        assert scores.dic.item() == 0
