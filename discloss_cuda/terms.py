"""The named tuple a call with ``return_terms=True`` gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DiscriminativeLossTerms(NamedTuple):
    """The loss and its three unweighted terms, all reduced alike and all differentiable.

    Each is a scalar, or ``[B]`` with ``reduction="none"``; float64 for float64 embeddings, else
    float32. ``loss = alpha * variance + beta * distance + gamma * regularization``.
    """

    loss: Tensor
    variance: Tensor
    distance: Tensor
    regularization: Tensor
