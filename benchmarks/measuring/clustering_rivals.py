"""What is called today to find instances in an embedding, each at the settings that suit it.

A rival gets the foreground points of an image, contiguous, as NumPy `[n, D]` float32, for free, and
returns a label a point, below 1 for none. Its package is imported when it is first made.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import discloss_cuda
from discloss_cuda import reference

from . import clustering_dense
from .clustering_workloads import DELTA_DIST, DELTA_VAR, Problem

Points, Labels = NDArray[np.float32], NDArray[np.int64]
Run = Callable[[], Tensor]

OURS = "discloss_cuda"
FRAGMENT, MIN_SIZE = 20, 20


@dataclass(frozen=True)
class Implementation:
    """Makes, for a problem, the call that is timed: ids of the shape of the problem's labels."""

    name: str
    make: Callable[[Problem], Run]
    package: str | None = None  # as `pip install` names it
    module: str | None = None  # as `import` does
    unsuited: Callable[[Problem], str] = lambda problem: ""  # why it cannot run, or nothing

    def missing(self) -> bool:
        """Its package is not installed."""
        return self.module is not None and importlib.util.find_spec(self.module) is None


def implementations() -> list[Implementation]:
    """All of them, ours first."""
    return [
        Implementation(f"{OURS} fragment {FRAGMENT}", partial(_ours, fragment=FRAGMENT)),
        Implementation(OURS, partial(_ours, fragment=0)),
        Implementation("dense PyTorch", partial(_of_points, lambda x, k: _dense(x))),
        Implementation("reference", _reference),
        # Of each rival the setting that is best on real nuclei, or on bars and synthetic images.
        *(_rival(f"authors' loop {b:g}", partial(_authors_loop, bandwidth=b)) for b in (1.2, 1.5)),
        _rival("faiss k-means, K given", _faiss, "faiss-cpu", "faiss"),
        *(
            _rival(f"dbscan (Wang) {eps:g}", partial(_wang, eps=eps), "dbscan", "dbscan", _too_wide)
            for eps in (0.4, 0.5)
        ),
        _rival("fast_hdbscan 20", _fast_hdbscan, "fast_hdbscan", "fast_hdbscan"),
        *(
            _rival(f"hdbscan 20, {words}", partial(_hdbscan, **options), "hdbscan", "hdbscan")
            for words, options in (
                ("samples 5", {"min_samples": 5}),
                ("epsilon 0.5", {"cluster_selection_epsilon": 0.5}),
            )
        ),
        _rival("sklearn DBSCAN 0.4", partial(_dbscan, eps=0.4), *SKLEARN),
        *(
            _rival(f"sklearn MeanShift {b:g}", partial(_mean_shift, bandwidth=b), *SKLEARN)
            for b in (1.0, 1.5)
        ),
    ]


SKLEARN = ("scikit-learn", "sklearn")


def _rival(
    name: str,
    labels_of: Callable[[Points, int], Labels],
    package: str | None = None,
    module: str | None = None,
    unsuited: Callable[[Problem], str] = lambda problem: "",
) -> Implementation:
    return Implementation(name, partial(_of_points, labels_of), package, module, unsuited)


def _of_points(labels_of: Callable[[Points, int], Labels], problem: Problem) -> Run:
    """A call on every image's points, whose labels are put back in their places.

    Small clusters are no instances, as with ours.
    """
    points, numbers = [x.numpy() for x in problem.points()], problem.instances()
    inside = problem.foreground.flatten()

    def run() -> Tensor:
        labels = [labels_of(x, k) for x, k in zip(points, numbers, strict=True)]
        kept = [_without_small(image) for image in labels]
        ids = torch.zeros(problem.labels.numel(), dtype=torch.int64)
        ids[inside] = torch.from_numpy(np.concatenate(kept))
        return ids.reshape(problem.labels.shape)

    return run


def _without_small(labels: Labels) -> Labels:
    """0 where a cluster has fewer than MIN_SIZE points, or a label is below 1."""
    labels = np.maximum(labels, 0).astype(np.int64)
    large = np.bincount(labels, minlength=1) >= MIN_SIZE
    large[0] = False
    return np.where(large[labels], labels, 0)


def _ours(problem: Problem, fragment: int) -> Run:
    x, inside = problem.embeddings, problem.foreground
    margins = {"delta_var": DELTA_VAR, "delta_dist": DELTA_DIST, "min_size": MIN_SIZE}
    if problem.offsets is not None:  # no grid, so no fragments
        packed, offsets = discloss_cuda.cluster_embeddings_packed, problem.offsets
        return lambda: packed(x, offsets, foreground=inside, **margins)
    dense = discloss_cuda.cluster_embeddings
    return lambda: dense(x, inside, fragment=fragment, **margins)


def _reference(problem: Problem) -> Run:
    x, inside = problem.embeddings, problem.foreground
    if problem.offsets is not None:
        packed, offsets = reference.cluster_embeddings_packed, problem.offsets
        return lambda: packed(x, offsets, foreground=inside, min_size=MIN_SIZE)
    return lambda: reference.cluster_embeddings(x, inside, min_size=MIN_SIZE)


def _dense(x: Points) -> Labels:
    labels: Labels = clustering_dense.cluster(torch.from_numpy(x)).numpy()
    return labels


def _authors_loop(x: Points, instances: int, *, bandwidth: float, most: int = 100) -> Labels:
    """The post-processing of arXiv 1708.02551, section 3.2, in NumPy.

    From a point without a label the mean of all that are nearer than the bandwidth, and again from
    there, until it stands still; these are an instance.
    """
    labels = np.zeros(len(x), np.int64)
    random = np.random.default_rng(0)
    left, number = np.arange(len(x)), 0
    while len(left):
        points = x[left]
        mean = points[random.integers(len(points))]
        for _ in range(most):
            near = ((points - mean) ** 2).sum(1) < bandwidth**2
            before, mean = mean, points[near].mean(0)
            if np.square(mean - before).sum() < 1e-6:
                break
        number += 1
        labels[left[near]] = number
        left = left[~near]
    return labels


def _faiss(x: Points, instances: int) -> Labels:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    means = faiss.Kmeans(x.shape[1], instances, niter=20, seed=0)
    means.cp.max_points_per_centroid = 1 + len(x) // instances  # no subsampling, no warning
    means.cp.min_points_per_centroid = 1
    means.train(x)
    labels: Labels = means.index.search(x, 1)[1][:, 0] + 1
    return labels


def _too_wide(problem: Problem) -> str:
    dim = problem.embeddings.shape[1]
    return "" if 2 <= dim <= 20 else f"takes 2 to 20 dimensions, not {dim}"


def _wang(x: Points, instances: int, *, eps: float) -> Labels:
    labels, _ = importlib.import_module("dbscan").DBSCAN(x, eps=eps, min_samples=MIN_SIZE)
    return np.asarray(labels, np.int64) + 1


def _fast_hdbscan(x: Points, instances: int) -> Labels:
    module = importlib.import_module("fast_hdbscan")
    return _fitted(module.HDBSCAN(min_cluster_size=MIN_SIZE, cluster_selection_epsilon=0.5), x)


def _hdbscan(x: Points, instances: int, **options: float) -> Labels:
    module = importlib.import_module("hdbscan")
    return _fitted(module.HDBSCAN(MIN_SIZE, core_dist_n_jobs=1, **options), x)


def _dbscan(x: Points, instances: int, *, eps: float) -> Labels:
    return _fitted(
        importlib.import_module("sklearn.cluster").DBSCAN(eps=eps, min_samples=MIN_SIZE), x
    )


def _mean_shift(x: Points, instances: int, *, bandwidth: float) -> Labels:
    module = importlib.import_module("sklearn.cluster")
    return _fitted(module.MeanShift(bandwidth=bandwidth, bin_seeding=True), x)


def _fitted(estimator: Any, x: Points) -> Labels:
    """Labels from 1, 0 for noise."""
    return np.asarray(estimator.fit_predict(x), np.int64) + 1
