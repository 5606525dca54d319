"""The keywords of a call of the clustering, their checks, and what it returns."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple, TypedDict

from torch import Tensor

from ._messages import describe

LEAST_MARGIN, MOST_MARGIN = 1e-15, 1e15  # float32 holds the squares (csrc/clustering)
NEAR = 2.02  # of delta_var: below this two pixels may be of one instance
MOST_SAMPLED = 65536
MOST = 2**31 - 1


class PackedClusteringOptions(TypedDict, total=False):
    """The keywords of all forms of the clustering but ``return_clusters``."""

    delta_var: float
    delta_dist: float
    min_size: int
    sample: int
    max_clusters: int
    modes: Tensor | None


class PackedBatchClusteringOptions(PackedClusteringOptions, total=False):
    """With those of a packed batch."""

    batch: Tensor | None
    batch_size: int | None


class ClusteringOptions(PackedClusteringOptions, total=False):
    """With those that need a grid."""

    fragment: int
    connected: bool


class ModuleClusteringOptions(TypedDict, total=False):
    """The keywords of :class:`discloss_cuda.EmbeddingClustering` but ``return_clusters``."""

    delta_var: float
    delta_dist: float
    min_size: int
    sample: int
    max_clusters: int
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


class ClusterNumbers(NamedTuple):
    """The numbers of a call, in the order in which the op takes them."""

    delta_var: float = 0.5
    delta_dist: float = 1.5
    min_size: int = 20
    sample: int = 4096
    max_clusters: int = 1024
    fragment: int = 0
    connected: bool = False

    def checked(self) -> ClusterNumbers:
        """The same, or an error that names the wrong one."""
        v = number("delta_var", self.delta_var)
        d = number("delta_dist", self.delta_dist)
        if v < LEAST_MARGIN:
            raise ValueError(f"delta_var: expected a number >= {LEAST_MARGIN}, got {v}")
        if d < NEAR * v:
            raise ValueError(
                f"delta_dist: expected a number >= {NEAR} delta_var = {NEAR * v}, got {d}"
            )
        if d > MOST_MARGIN:
            raise ValueError(f"delta_dist: expected a number <= {MOST_MARGIN}, got {d}")
        if not isinstance(self.connected, bool):
            raise TypeError(f"connected: expected a bool, got {describe(self.connected)}")
        return ClusterNumbers(
            v,
            d,
            whole("min_size", self.min_size, 1, MOST),
            whole("sample", self.sample, 1, MOST_SAMPLED),
            whole("max_clusters", self.max_clusters, 1, MOST),
            whole("fragment", self.fragment, 0, MOST),
            self.connected,
        )


def number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def whole(name: str, value: int, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int, got {describe(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected a number from {least} to {most}, got {value}")
    return int(value)
