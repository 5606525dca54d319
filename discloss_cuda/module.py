"""The loss as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .functional import (
    check_ignore_label,
    check_max_instances,
    check_parameters,
    check_reduction,
    discriminative_loss,
)

__all__ = ["DiscriminativeLoss"]


class DiscriminativeLoss(nn.Module):
    """:func:`discloss_cuda.discriminative_loss` with its keywords fixed at construction.

    Has no parameters and no buffers. The arguments, formula and errors are those of the function;
    wrong hyper-parameters raise at construction.

    Shape:
        - embeddings: ``[B, D, *spatial]``
        - labels: ``[B, *spatial]``
        - output: scalar, ``[B]`` with ``reduction="none"``, or a named tuple of four with
          ``return_terms=True``

    Example:
        >>> import torch
        >>> from discloss_cuda import DiscriminativeLoss
        >>> criterion = DiscriminativeLoss(ignore_label=0)
        >>> embeddings = torch.zeros(2, 8, 16, 16, requires_grad=True)
        >>> labels = torch.zeros(2, 16, 16, dtype=torch.int64)  # nothing but background
        >>> criterion(embeddings, labels)
        tensor(0., grad_fn=<MeanBackward0>)
    """

    def __init__(
        self,
        *,
        delta_var: float = 0.5,
        delta_dist: float = 1.5,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.001,
        norm: int = 2,
        ignore_label: int | Sequence[int] | None = None,
        max_instances: int | None = None,
        reduction: str = "mean",
        return_terms: bool = False,
    ) -> None:
        super().__init__()
        check_parameters(delta_var, delta_dist, alpha, beta, gamma, norm)
        check_ignore_label(ignore_label)
        self.delta_var = delta_var
        self.delta_dist = delta_dist
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.norm = norm
        self.ignore_label = ignore_label
        self.max_instances = check_max_instances(max_instances)
        self.reduction = check_reduction(reduction)
        self.return_terms = return_terms

    def forward(self, embeddings: Tensor, labels: Tensor) -> Any:
        """The loss of a batch; see :func:`discloss_cuda.discriminative_loss`."""
        return discriminative_loss(
            embeddings,
            labels,
            delta_var=self.delta_var,
            delta_dist=self.delta_dist,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            norm=self.norm,
            ignore_label=self.ignore_label,
            max_instances=self.max_instances,
            reduction=self.reduction,
            return_terms=self.return_terms,
        )

    def extra_repr(self) -> str:
        """All keywords, as the constructor takes them."""
        names = (
            "delta_var",
            "delta_dist",
            "alpha",
            "beta",
            "gamma",
            "norm",
            "ignore_label",
            "max_instances",
            "reduction",
            "return_terms",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
