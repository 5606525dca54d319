"""The loss as a module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Unpack, overload

from torch import Tensor, nn
from typing_extensions import TypeVar

from ._check_arguments import (
    check_ignore_label,
    check_max_instances,
    check_parameters,
    check_reduction,
    check_sharding,
    refuse_unknown,
)
from ._options import ShardedOptions
from .functional import discriminative_loss
from .terms import DiscriminativeLossTerms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["DiscriminativeLoss"]

# What a call returns, by ``return_terms``; only type checkers ask.
Result = TypeVar("Result", bound=Tensor | DiscriminativeLossTerms, default=Tensor)


class DiscriminativeLoss(nn.Module, Generic[Result]):
    """:func:`discloss_cuda.discriminative_loss` with its keywords fixed at construction.

    Has no parameters and no buffers. The arguments, formula and errors are those of the function;
    wrong hyper-parameters raise at construction.

    Shape:
        - embeddings: ``[B, D, *spatial]``
        - labels: ``[B, *spatial]`` or ``[B, 1, *spatial]``
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

    @overload
    def __init__(
        self: DiscriminativeLoss[Tensor],
        *,
        return_terms: Literal[False] = False,
        **options: Unpack[ShardedOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: DiscriminativeLoss[DiscriminativeLossTerms],
        *,
        return_terms: Literal[True],
        **options: Unpack[ShardedOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: DiscriminativeLoss[Tensor | DiscriminativeLossTerms],
        *,
        return_terms: bool,
        **options: Unpack[ShardedOptions],
    ) -> None: ...
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
        process_group: ProcessGroup | None = None,
        grad_scale: str = "exact",
        **unknown: object,
    ) -> None:
        if unknown:
            refuse_unknown("DiscriminativeLoss", unknown)
        super().__init__()
        parameters = check_parameters(delta_var, delta_dist, alpha, beta, gamma, norm)
        for name, number in parameters._asdict().items():
            setattr(self, name, number)
        ids: Any = check_ignore_label(ignore_label)
        several = isinstance(ignore_label, Collection)
        self.ignore_label = None if ignore_label is None else ids if several else ids[0]
        self.max_instances = check_max_instances(max_instances)
        self.reduction = check_reduction(reduction)
        self.return_terms = return_terms
        if process_group is not None or grad_scale != "exact":
            check_sharding(process_group, grad_scale, max_instances)
        self.process_group = process_group
        self.grad_scale = grad_scale

    delta_var: float
    delta_dist: float
    alpha: float
    beta: float
    gamma: float
    norm: int
    ignore_label: int | list[int] | None

    if TYPE_CHECKING:

        def __call__(self, embeddings: Tensor, labels: Tensor) -> Result:
            """As ``forward``; the one of ``nn.Module`` is typed to return anything."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Result:
        """The loss of a batch; see :func:`discloss_cuda.discriminative_loss`."""
        return discriminative_loss(  # type: ignore[return-value]
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
            process_group=self.process_group,
            grad_scale=self.grad_scale,
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
            "process_group",
            "grad_scale",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
