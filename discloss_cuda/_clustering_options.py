"""The keywords of a call of the clustering as type checkers see them, and what it returns."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from torch import Tensor


class PackedClusteringOptions(TypedDict, total=False):
    """The keywords of all forms of the clustering but ``return_clusters``."""

    delta_var: float
    delta_dist: float
    min_size: int
    sample: int
    max_clusters: int
    modes: Tensor | None


class ClusteringOptions(PackedClusteringOptions, total=False):
    """With those that need a grid."""

    fragment: int
    connected: bool


class Clusters(NamedTuple):
    """Instances of ``B`` images, ``M = max_clusters`` rows an image, row k - 1 that of id k.

    Rows from ``number`` on are empty: 0, and -1 in ``source``.
    """

    #: ``[B, *spatial]`` int32, or ``[N_total]``: 1 to ``number`` in the order of each instance's
    #: first pixel; 0 for background, unassigned pixels and those that are not finite
    ids: Tensor
    #: ``[B, M, D]`` float32: what the pixels were assigned to
    modes: Tensor
    #: ``[B, M]`` int32: pixels
    counts: Tensor
    #: ``[B, M]`` int64: value of ``foreground``; 1 without classes
    classes: Tensor
    #: ``[B, M]`` int32: the row of the given mode, -1 for a new one
    source: Tensor
    #: ``[B]`` int32: instances
    number: Tensor
    #: ``[B]`` bool: whether ``max_clusters`` kept others out
    truncated: Tensor
