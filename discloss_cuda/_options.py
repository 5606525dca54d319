"""The keywords of a call as type checkers see them, for overloads by ``return_terms``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor


class Options(TypedDict, total=False):
    """The keywords of :func:`discloss_cuda.discriminative_loss`, all but ``return_terms``."""

    delta_var: float
    delta_dist: float
    alpha: float
    beta: float
    gamma: float
    norm: int
    ignore_label: int | Sequence[int] | None
    max_instances: int | None
    reduction: str


class PackedOptions(Options, total=False):
    """Those of :func:`discloss_cuda.discriminative_loss_packed`."""

    batch: Tensor | None
    batch_size: int | None
