"""From checked arguments to results: which op is called, and the reduction over the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _doors, _ops, _sharded
from ._check_arguments import check_device, check_integers, check_sharding, check_size
from ._messages import cut
from .terms import DiscriminativeLossTerms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def without_channel(embeddings: Tensor, labels: Tensor) -> Tensor:
    """A view ``[B, *spatial]`` of ``[B, 1, *spatial]``; any other shape is left to the op's checks.

    ``[B, *spatial]`` has an axis less than the embeddings, so no shape can mean both.
    """
    images, _, *spatial = embeddings.shape
    return labels.squeeze(1) if labels.shape == (images, 1, *spatial) else labels


def offsets_of(
    labels: Tensor, offsets: Tensor | None, batch: Tensor | None, batch_size: int | None
) -> Tensor:
    """The offsets of a packed batch, however it was described."""
    if (offsets is None) == (batch is None):
        given = "both" if batch is not None else "neither"
        raise ValueError(f"offsets, batch: expected exactly one of them, got {given}")
    if offsets is not None:
        if batch_size is not None:
            raise ValueError(
                f"batch_size: expected only with batch, got {cut(str(batch_size))} with offsets"
            )
        offsets = check_integers("offsets", offsets)
        check_device("offsets", offsets, "labels", labels)
        return offsets
    assert batch is not None
    batch = check_integers("batch", batch)
    check_device("batch", batch, "labels", labels)
    if batch.shape != labels.shape:
        raise ValueError(
            f"batch: expected shape [N_total] = {list(labels.shape)}, got {list(batch.shape)}"
        )
    if batch_size is None:
        if batch.is_meta:
            raise ValueError("batch_size: expected an int for meta tensors, got None")
        last: Any = batch[-1].item() if batch.numel() else -1
        batch_size = last + 1
    size = check_size("batch_size", batch_size)
    result: Tensor = _ops.current().batch_offsets(batch, size)
    return result


def loss(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None,
    parameters: _ops.Parameters,
    ignore_labels: list[int] | Tensor,
    max_instances: int | None,
    reduction: str,
    return_terms: bool,
    process_group: ProcessGroup | None,
    grad_scale: str,
) -> Tensor | DiscriminativeLossTerms:
    results: Sequence[Tensor]
    if process_group is not None or grad_scale != "exact":
        group, limit = check_sharding(process_group, grad_scale, max_instances)
        results = _sharded.apply(
            embeddings, labels, offsets, limit, parameters, ignore_labels, group, grad_scale
        )
    else:
        if max_instances is None:
            if labels.is_meta:
                raise ValueError("max_instances: expected an int for meta tensors, got None")
            max_instances = _doors.count_instances(labels, offsets, ignore_labels)
        results = _doors.apply(
            embeddings,
            labels,
            offsets,
            max_instances,
            parameters,
            ignore_labels,
            reduction != "none",
            _ops.NUM_TERMS if return_terms else 1,
        )
    if return_terms:
        return DiscriminativeLossTerms(*(_reduce(result, reduction) for result in results))
    return _reduce(results[0], reduction)


def _reduce(per_image: Tensor, reduction: str) -> Tensor:
    """``[B]`` to a scalar; the mean over no image is 0 (torch's own is NaN)."""
    if reduction == "none" or per_image.dim() == 0:
        return per_image
    images = per_image.shape[0]
    if reduction == "sum":
        return per_image.sum()
    if torch.compiler.is_compiling():  # B may be a symbol, of which nothing can be asked
        mean: Tensor = per_image.sum() / torch.sym_max(images, 1)
        return mean
    if images == 1:
        return per_image.squeeze(0)  # no arithmetic, neither here nor in backward
    return per_image.mean() if images > 0 else per_image.sum()
