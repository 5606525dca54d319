"""Which door to the ops a call takes.

One op, three doors. A call goes to the op itself, whose gradient is registered with the dispatcher
(csrc/loss/autograd.h): through ``torch.ops`` where ``torch.compile``, ``torch.export`` or a
``__torch_function__`` has to see it, else by a call of its C++ handle, which is shorter. A graph of
``torch.compile`` whose numbers change takes them as tensors (:mod:`._scheduled`). Under
``torch.func``, which sees no registered gradient, it goes through
:class:`DiscriminativeLossFunction`, which keeps the same results for the same backward op. Where
neither reaches (second derivatives, forward-mode differentiation, ``torch.func`` inside
``torch.compile``) the differentiable reference computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from . import _autograd, _ops, _scheduled, _vmap
from ._autograd import NUM_TERMS, Parameters
from ._check_arguments import is_annotated

__all__ = ["DiscriminativeLossFunction", "apply", "count_instances"]


class _BackwardFunction(torch.autograd.Function):
    """The backward op for ``torch.func``, differentiable once more."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        gradient: Tensor = _ops.current().backward(*arguments)
        return gradient

    setup_context = staticmethod(_autograd.save_for_gradient)
    backward = staticmethod(_autograd.gradient_of_gradient)
    vmap = staticmethod(_vmap.batching_rule(lambda *a: _BackwardFunction.apply(*a), 5))  # type: ignore[no-untyped-call]


class DiscriminativeLossFunction(torch.autograd.Function):
    """The fused loss as a ``torch.autograd.Function``.

    Takes the arguments of the forward op and returns its results (csrc/loss/discriminative_loss.h):
    loss, variance, distance and regularization, each ``[B]`` and differentiable, then what
    backward needs. :func:`discloss_cuda.discriminative_loss` is the function to call.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = _ops.current().forward(*arguments)
        return results

    setup_context = staticmethod(_autograd.save)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Call the backward op, unless no term has a gradient."""
        return _autograd.gradient_of_terms(_BackwardFunction.apply, ctx, *gradients)

    vmap = staticmethod(_vmap.batching_rule(lambda *a: DiscriminativeLossFunction.apply(*a), 2))  # type: ignore[no-untyped-call]


def apply(
    embeddings: Tensor,  # [B, D, *spatial] or [N_total, D]
    labels: Tensor,  # [B, *spatial] or [N_total]
    offsets: Tensor | None,  # [B + 1]
    max_instances: int,
    parameters: Parameters,
    ignore_labels: list[int] | Tensor,
    squeeze: bool,
    count: int,
) -> Sequence[Tensor]:
    """The first ``count`` of loss and terms, through the door that keeps every derivative.

    Each is ``[B]``; or, of one image and with ``squeeze``, perhaps ``[]``. Count is 1 or all.
    """
    ops = _ops.current()
    arguments = (labels, offsets, max_instances, list(parameters), ignore_labels)
    under_func = torch._C._are_functorch_transforms_active()
    compiling = torch.compiler.is_compiling()
    results: Sequence[Tensor]
    if forward_ad._current_level >= 0 or (compiling and under_func):
        forward = _forward_in_graph if compiling else ops.forward
        slots = forward(embeddings.detach(), *arguments)[NUM_TERMS]
        return _autograd.reference_terms(embeddings, slots, offsets, max_instances, parameters)[
            :count
        ]
    if under_func:
        results = DiscriminativeLossFunction.apply(embeddings, *arguments)  # type: ignore[no-untyped-call]
        return results[:count]
    if compiling:
        if is_annotated(embeddings):  # a copy, as of the labels
            embeddings = embeddings.neg().neg()
        results = _forward_in_graph(embeddings, *arguments)
        return results[:count]
    if has_torch_function((embeddings, labels, offsets)) or type(max_instances) is not int:
        results = ops.forward(embeddings, *arguments, squeeze=squeeze)
        return results[:count]
    results = ops.terms(count, embeddings, *arguments, squeeze)
    return results


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _forward_in_graph(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None,
    max_instances: int,
    parameters: Sequence[Any],
    ignore_labels: list[int] | Tensor,
) -> tuple[Tensor, ...]:
    """Forward in a graph: with the numbers in the graph, or in tensors where one is not known yet.

    Dynamo, which cannot tell a float from a symbol, leaves this call as it is to those who can.
    """
    ops = _ops.current()
    results: tuple[Tensor, ...]
    if isinstance(ignore_labels, list) and all(type(p) in (float, int) for p in parameters):
        results = ops.forward(embeddings, labels, offsets, max_instances, parameters, ignore_labels)
    else:
        results = ops.forward_scheduled(
            embeddings,
            labels,
            offsets,
            max_instances,
            _scheduled.vector(parameters),
            _scheduled.ids(ignore_labels),
        )
    return results


def count_instances(
    labels: Tensor, offsets: Tensor | None, ignore_labels: list[int] | Tensor
) -> int:
    """The most instances that any image has."""
    ops = _ops.current()
    if isinstance(ignore_labels, Tensor):
        count: int = ops.count_instances_scheduled(labels, offsets, ignore_labels)
    else:
        count = ops.count_instances(labels, offsets, ignore_labels)
    return count
