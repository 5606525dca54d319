"""Batching rules of the ops: the axis that ``vmap`` adds becomes more images of one call.

``[B, ...] -> [V * B, ...]``, and for a packed batch the ``V`` batches stand one behind the other.
An argument without the axis is repeated along it, which copies it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["batch_offsets", "batching_rule", "count_instances", "forward"]

Rule = Callable[..., tuple[Any, Any]]


def batching_rule(call: Callable[..., Any], offsets_at: int) -> Rule:
    """The rule of forward or backward, as a ``vmap`` staticmethod and ``register_vmap`` take it.

    Args:
        call: what to call with the images of all batches.
        offsets_at: the position of ``offsets`` among its arguments.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        if in_dims[offsets_at] is None:
            folded = _fold(arguments, in_dims, info.batch_size, offsets_at)
            results = pytree.tree_map(
                lambda result: result.unflatten(0, (info.batch_size, -1)), call(*folded)
            )
        else:  # one behind the other, no op could tell where the offsets of a batch are wrong
            each = [call(*_select(arguments, in_dims, v)) for v in range(info.batch_size)]
            results = pytree.tree_map(lambda *of_each: torch.stack(of_each), *each)
        return results, pytree.tree_map(lambda _: 0, results)

    return rule


def forward(op: Callable[..., tuple[Tensor, ...]]) -> Rule:
    """The rule of forward, whose terms may be asked for without the axis of one image."""
    per_image = batching_rule(op, 2)

    def rule(
        info: Any, in_dims: tuple[Any, ...], *arguments: Any, squeeze: bool = False
    ) -> tuple[Any, Any]:
        results, out_dims = per_image(info, in_dims, *arguments)
        if squeeze and results[0].shape[1] == 1:
            results = (*(term.squeeze(1) for term in results[:4]), *results[4:])
        return results, out_dims

    return rule


def count_instances(op: Callable[..., int]) -> Rule:
    """The rule of count_instances: the most instances of any image of any batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[int, None]:
        if in_dims[1] is None:
            return op(*_fold(arguments, in_dims, info.batch_size, offsets_at=1)), None
        each = [op(*_select(arguments, in_dims, v)) for v in range(info.batch_size)]
        return max(each), None

    return rule


def batch_offsets(op: Callable[..., Tensor]) -> Rule:
    """The rule of batch_offsets: batch by batch."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        each = [op(*_select(arguments, in_dims, v)) for v in range(info.batch_size)]
        return torch.stack(each), 0

    return rule


def _fold(
    arguments: tuple[Any, ...], in_dims: tuple[Any, ...], size: int, offsets_at: int
) -> list[Any]:
    """The arguments of one call for ``size`` batches; ``offsets`` have no axis of ``vmap``."""
    folded = [
        _images(_leading(argument, dim, size)) if isinstance(argument, Tensor) else argument
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
    if (offsets := arguments[offsets_at]) is not None:
        points = folded[offsets_at - 1].shape[0] // size  # N_total stands before them
        starts = torch.arange(size, dtype=offsets.dtype, device=offsets.device)[:, None] * points
        ends = starts[-1] + offsets[-1:]  # the last cloud of all ends where the offsets say
        folded[offsets_at] = torch.cat([(starts + offsets[:-1]).flatten(), ends])
    return folded


def _leading(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """``[V, ...]`` with the axis of ``vmap`` in front."""
    if dim is None:
        return tensor.expand(size, *tensor.shape).contiguous()  # as backward takes what was saved
    return tensor.movedim(dim, 0)


def _images(tensor: Tensor) -> Tensor:
    """``[V, B, ...]`` as ``[V * B, ...]``; of one image each, ``[V]`` as it is."""
    return tensor.flatten(0, 1) if tensor.dim() > 1 else tensor


def _select(arguments: tuple[Any, ...], in_dims: tuple[Any, ...], v: int) -> list[Any]:
    """The arguments of batch ``v`` alone."""
    return [
        argument.select(dim, v) if isinstance(argument, Tensor) and dim is not None else argument
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
