"""The keywords of a call as type checkers see them, for overloads by ``return_terms``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Options(TypedDict, total=False):
    """The keywords of all forms of the loss but ``return_terms``."""

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
    """With those of a packed batch."""

    batch: Tensor | None
    batch_size: int | None


class ShardedOptions(Options, total=False):
    """With those of :func:`discloss_cuda.discriminative_loss`, which the reference lacks."""

    process_group: ProcessGroup | None
    grad_scale: str


class ShardedPackedOptions(PackedOptions, ShardedOptions, total=False):
    """The keywords of :func:`discloss_cuda.discriminative_loss_packed`."""
