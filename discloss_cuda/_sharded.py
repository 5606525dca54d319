"""The loss of images whose pixels are spread over the ranks of a process group.

The steps are those of the fused ops (docs/design.md), with three collectives in between::

    ids of my pixels      -> all-gather -> ids of each image, slots
    sums, counts          -> all-reduce -> means
    hinges, their pulls   -> all-reduce -> loss and terms, the same on every rank

The fused forward cannot stop for a collective, so its passes over the pixels are composed of
PyTorch ops here. The terms of the means are those of the fused forward on the means, and backward
is the fused one: with the tables of whole images it gives the gradient of the pixels it is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd import forward_ad
from torch.nn import functional

from . import _autograd, _ops, reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["apply"]

CHUNK = 1 << 20  # values of the embedding that are worked on at a time, in float64


class Shard(NamedTuple):
    """What this rank has of the images, and what it is to be reduced with."""

    pixels: list[Tensor]  # of each image [D, N_b], a view where strides allow
    labels: list[Tensor]  # of each image [N_b]
    channels: int
    accumulate_dtype: torch.dtype
    device: torch.device
    max_instances: int
    ignore_labels: list[int]
    group: ProcessGroup


def apply(
    embeddings: Tensor,  # [B, D, *spatial] or [N_total, D]
    labels: Tensor,  # [B, *spatial] or [N_total]
    offsets: Tensor | None,  # [B + 1]
    max_instances: int,
    parameters: _ops.Parameters,
    ignore_labels: list[int] | Tensor,  # a list, of an eager call
    group: ProcessGroup,
    grad_scale: str,
) -> tuple[Tensor, ...]:
    """Loss and terms of the whole images, each ``[B]``, differentiable once.

    Every check is made before the first collective, where an error would leave the others waiting.
    """
    _check_mode(embeddings)
    _ops.current().check_forward(
        embeddings, labels, offsets, max_instances, parameters, ignore_labels
    )
    factor = distributed.get_world_size(group) if grad_scale == "ddp" else 1
    results: tuple[Tensor, ...] = ShardedLossFunction.apply(  # type: ignore[no-untyped-call]
        embeddings, labels, offsets, max_instances, parameters, ignore_labels, group, factor
    )
    return results


def _check_mode(embeddings: Tensor) -> None:
    """Refuse what would need a derivative, or a trace, of a collective."""
    if embeddings.device.type == "meta":
        raise ValueError("embeddings: expected data with process_group, got a meta tensor")
    refused = {
        "torch.compile": torch.compiler.is_compiling(),
        "torch.func": torch._C._are_functorch_transforms_active(),
        "forward-mode differentiation": forward_ad._current_level >= 0,
    }
    for name, active in refused.items():
        if active:
            raise RuntimeError(f"process_group: expected an eager call, got one under {name}")


class ShardedLossFunction(torch.autograd.Function):
    """Loss and terms ``[B]`` by collectives; a backward without any."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        offsets: Tensor | None,
        max_instances: int,
        parameters: _ops.Parameters,
        ignore_labels: list[int],
        group: ProcessGroup,
        factor: int,
    ) -> tuple[Tensor, ...]:
        """The collectives, and what lies between them."""
        images = _images(embeddings.detach(), labels, offsets)
        shard = Shard(
            *images,
            channels=embeddings.shape[1],
            accumulate_dtype=_autograd.accumulate_dtype(embeddings),
            device=embeddings.device,
            max_instances=max_instances,
            ignore_labels=ignore_labels,
            group=group,
        )
        terms, slots, tables = _terms_and_tables(shard, parameters)
        all_slots = torch.cat([labels.new_empty(0, dtype=torch.int32), *slots]).view(labels.shape)
        ctx.save_for_backward(embeddings, offsets, all_slots, *tables)
        ctx.parameters, ctx.factor = parameters, factor
        ctx.set_materialize_grads(False)
        return terms

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The backward op on this rank's pixels."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "process_group: expected backward without create_graph=True, "
                "the gradient of a sharded loss has no derivative"
            )
        if all(gradient is None for gradient in gradients):
            return (None,) * 8
        scaled = [gradient if gradient is None else ctx.factor * gradient for gradient in gradients]
        gradient = _ops.current().backward(*scaled, *ctx.saved_tensors, ctx.parameters)
        return (gradient, *(None,) * 7)


def _images(
    embeddings: Tensor, labels: Tensor, offsets: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Pixels ``[D, N_b]`` and labels ``[N_b]`` of each image."""
    if offsets is None:
        return [x.flatten(1) for x in embeddings], [image.flatten() for image in labels]
    clouds = [slice(first, last) for first, last in itertools.pairwise(offsets.tolist())]
    return [embeddings[cloud].t() for cloud in clouds], [labels[cloud] for cloud in clouds]


def _terms_and_tables(
    shard: Shard, parameters: _ops.Parameters
) -> tuple[tuple[Tensor, ...], list[Tensor], tuple[Tensor, ...]]:
    """Loss and terms ``[B]``, the slots, and the tables that backward takes after the slots."""
    ids, instances = _gather_ids(shard)
    slots = _slots(shard, ids)
    counts, means = _means(shard, slots)
    squares, pulls = _pulls(shard, slots, means, parameters)
    divisor = (instances[:, None] * counts).clamp(min=1).double()  # [B, M]: K N_k
    variance = (squares / divisor).sum(1)
    pull = (pulls / divisor[..., None]).to(means.dtype)
    distance, regularization, push = _terms_of_means(means, counts, parameters)
    loss = (
        parameters.alpha * variance + parameters.beta * distance + parameters.gamma * regularization
    )
    terms = (loss.to(means.dtype), variance.to(means.dtype), distance, regularization)
    return terms, slots, (instances, counts, means, pull, push)


# --- ids ------------------------------------------------------------------------------------------


def _gather_ids(shard: Shard) -> tuple[list[Tensor], Tensor]:
    """The sorted ids of each image over all ranks, and their number ``[B]``.

    A rank tells its ids of an image and how many they are, so that padding is no id. Of more than M
    it tells M; the number is enough for all ranks to raise the same error.
    """
    limit = shard.max_instances
    device = shard.device
    mine = torch.zeros(len(shard.labels), limit + 1, dtype=torch.int64, device=device)
    for row, labels in zip(mine, shard.labels, strict=True):
        ids = labels.to(torch.int64)
        ids = torch.unique(ids[reference.kept(ids, shard.ignore_labels)])
        row[-1] = ids.numel()
        row[: min(ids.numel(), limit)] = ids[:limit]
    gathered = [torch.empty_like(mine) for _ in range(distributed.get_world_size(shard.group))]
    distributed.all_gather(gathered, mine, group=shard.group)

    of_ranks = torch.stack(gathered, 1).cpu()  # [B, ranks, M + 1]; waits for the device
    merged = []
    for image, rows in enumerate(of_ranks):
        is_id = torch.arange(limit, device="cpu") < rows[:, -1:]
        ids = torch.unique(rows[:, :-1][is_id])
        found = max(ids.numel(), int(rows[:, -1].max()))
        if found > limit:
            raise ValueError(
                f"max_instances: expected at most {limit} instances in an image over all ranks, "
                f"got at least {found} in image {image}"
            )
        merged.append(ids.to(device))
    return merged, torch.tensor([ids.numel() for ids in merged], dtype=torch.int64, device=device)


def _slots(shard: Shard, ids: list[Tensor]) -> list[Tensor]:
    """The rank of each pixel's id among the ids of its image, int32 ``[N_b]``; -1: ignored."""
    slots = []
    for labels, of_image in zip(shard.labels, ids, strict=True):
        values = labels.to(torch.int64).contiguous()
        rank = torch.searchsorted(of_image, values, out_int32=True)
        slots.append(torch.where(reference.kept(values, shard.ignore_labels), rank, -1))
    return slots


# --- sums over the pixels -------------------------------------------------------------------------

# (image, pixels [D, n] in the accumulate type, their rows [n]) -> vectors [D, n], numbers [n]
OfChunk = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def _sum_by_instance(shard: Shard, slots: list[Tensor], of_chunk: OfChunk) -> tuple[Tensor, Tensor]:
    """Sums ``[B, M, D]`` of vectors and ``[B, M]`` of numbers over the pixels of all ranks.

    In float64, in which counts are exact too. Ignored pixels have a row of their own, which is left
    behind: nothing of them, not even a NaN, gets further.
    """
    channels, limit = shard.channels, shard.max_instances
    table = torch.zeros(
        len(slots), channels + 1, limit + 1, dtype=torch.float64, device=shard.device
    )
    step = max(1, CHUNK // channels)
    for image, (pixels, of_image) in enumerate(zip(shard.pixels, slots, strict=True)):
        for x, slot in zip(pixels.split(step, 1), of_image.split(step), strict=True):
            row = torch.where(slot < 0, limit, slot)
            vectors, numbers = of_chunk(image, x.to(shard.accumulate_dtype), row)
            table[image, :-1].index_add_(1, row, vectors.double())
            table[image, -1].index_add_(0, row, numbers.double())
    sums = table[..., :-1].transpose(1, 2).contiguous()
    distributed.all_reduce(sums, group=shard.group)
    return sums[..., :-1], sums[..., -1]


def _means(shard: Shard, slots: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``N_k`` as ``[B, M]`` and ``mu_k`` as ``[B, M, D]``; an empty slot has mean 0."""
    sums, counts = _sum_by_instance(shard, slots, lambda _, x, row: (x, torch.ones_like(row)))
    means = sums / counts.clamp(min=1)[..., None]
    return counts.long(), means.to(shard.accumulate_dtype)


def _pulls(
    shard: Shard, slots: list[Tensor], means: Tensor, parameters: _ops.Parameters
) -> tuple[Tensor, Tensor]:
    """``sum_i h_i^2`` as ``[B, M]`` and ``sum_i d(h_i^2)/dx_i`` as ``[B, M, D]``."""
    columns = functional.pad(means.transpose(1, 2), (0, 1))  # [B, D, M + 1]: ignored pixels, too

    def of_chunk(image: int, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            v = (x - columns[image].index_select(1, row)).requires_grad_()
            norms = reference.loss._norm(v.t(), parameters.norm)
            squares = torch.relu(norms - parameters.delta_var).square()
            (of_v,) = torch.autograd.grad(squares.sum(), v)
        return of_v, squares.detach()

    pulls, squares = _sum_by_instance(shard, slots, of_chunk)
    return squares, pulls


def _terms_of_means(
    means: Tensor, counts: Tensor, parameters: _ops.Parameters
) -> tuple[Tensor, Tensor, Tensor]:
    """L_dist and L_reg, each ``[B]``, and ``dL_dist/dmu_k [B, M, D]``.

    They depend on the means alone, so they are those of an image whose pixels are the means.
    """
    limit = counts.shape[1]
    empty = -1
    labels = torch.arange(limit, device=counts.device).where(counts > 0, empty)
    results = _ops.current().forward(
        means.transpose(1, 2), labels, None, limit, parameters, [empty]
    )
    return results[2], results[3], results[9]
