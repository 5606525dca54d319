"""The contingency table of two label maps, sparse: which id meets which, in how many pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._check_arguments import check_ignore_label


class Regions(NamedTuple):
    """The ids of one of the two maps; ``R`` in all images together, background included."""

    image: Tensor  # [R] int64, not decreasing
    label: Tensor  # [R] int64: the id
    pixels: Tensor  # [R] int64: its area
    instance: Tensor  # [R] bool: not background

    def number(self, images: int) -> Tensor:
        """``[B]`` int64, instances of each image."""
        return sum_by(self.image, self.instance.to(torch.int64), images)


class ContingencyTable(NamedTuple):
    """Which id meets which, in how many pixels: the ``P`` entries that are not 0."""

    images: int  # B
    predicted: Regions
    target: Regions
    row: Tensor  # [P] int64: index into predicted
    column: Tensor  # [P] int64: index into target
    pixels: Tensor  # [P] int64

    def instances(self) -> tuple[Tensor, Tensor, Tensor]:
        """``row, column, pixels`` of the entries that are background on neither side."""
        kept = self.predicted.instance[self.row] & self.target.instance[self.column]
        return self.row[kept], self.column[kept], self.pixels[kept]


def contingency_table(
    predicted: Tensor,  # [B, *spatial] or [N_total]
    target: Tensor,  # [B, *spatial] or [N_total]
    offsets: Tensor | None = None,  # [B + 1]
    *,
    background: int | None = 0,
    ignore_label: int | Sequence[int] | None = None,
) -> ContingencyTable:
    """The table that all scores come from.

    Arguments and errors are those of :func:`discloss_cuda.metrics.instance_scores`.

    The pass over the pixels finds the runs in which neither map changes. Everything after it is of
    the number of runs, which in a map of regions is far below the number of pixels.
    """
    _check_maps(predicted, target, offsets)
    ignored = check_ignore_label(ignore_label)
    if offsets is None:
        images, size = predicted.shape[0], predicted[:1].numel()
        offsets = torch.arange(images + 1, device=predicted.device) * size
    offsets = offsets.to(predicted.device, torch.int64)
    images = offsets.shape[0] - 1

    starts = _run_starts(predicted.reshape(-1), target.reshape(-1), offsets)
    lengths = torch.diff(starts, append=offsets[-1:])
    image = torch.searchsorted(offsets, starts, right=True) - 1
    found = predicted.reshape(-1)[starts].to(torch.int64)
    true = target.reshape(-1)[starts].to(torch.int64)
    if ignored:
        kept = ~torch.isin(true, torch.tensor(ignored, device=true.device))
        lengths, image, found, true = lengths[kept], image[kept], found[kept], true[kept]

    predicted_regions, row = _regions(image, found, lengths, background)
    target_regions, column = _regions(image, true, lengths, background)
    columns = max(len(target_regions.label), 1)
    pairs, pair = torch.unique(row * columns + column, return_inverse=True)
    return ContingencyTable(
        images=images,
        predicted=predicted_regions,
        target=target_regions,
        row=pairs // columns,
        column=pairs % columns,
        pixels=sum_by(pair, lengths, len(pairs)),
    )


def _check_maps(predicted: Tensor, target: Tensor, offsets: Tensor | None) -> None:
    for name, value in (("predicted", predicted), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"{name}: expected bool or integer ids, got {value.dtype}")
    if predicted.shape != target.shape or predicted.dim() == 0:
        raise ValueError(
            "target: expected the shape of predicted, [B, *spatial] = "
            f"{list(predicted.shape)}, got {list(target.shape)}"
        )
    if predicted.device != target.device:
        raise ValueError(
            f"target: expected the device of predicted, {predicted.device}, got {target.device}"
        )
    if offsets is not None:
        bounds = offsets.tolist()
        rising = all(a <= b for a, b in itertools.pairwise(bounds))
        ends = bounds[:1] + bounds[-1:]
        if predicted.dim() != 1 or ends != [0, len(predicted)] or not rising:
            raise ValueError(
                "offsets: expected numbers from 0 to N_total that do not decrease, for maps "
                f"[N_total], got {bounds} for {list(predicted.shape)}"
            )


def _run_starts(predicted: Tensor, target: Tensor, offsets: Tensor) -> Tensor:
    """Where a run of pixels begins that have the same ids and image, ``[R]`` rising."""
    change = torch.zeros(predicted.shape[0] + 1, dtype=torch.bool, device=predicted.device)
    change[offsets] = True
    for ids in (predicted, target):
        if ids.dtype == torch.uint16:
            ids = ids.view(torch.int16)  # as equal as before, and every backend compares them
        change[1:-1] |= ids[1:] != ids[:-1]
    return change[:-1].nonzero()[:, 0]


def _regions(
    image: Tensor, label: Tensor, pixels: Tensor, background: int | None
) -> tuple[Regions, Tensor]:
    """The regions of one side, and the region of each run."""
    labels, rank = torch.unique(label, return_inverse=True)
    size = max(len(labels), 1)
    keys, region = torch.unique(image * size + rank, return_inverse=True)
    own = labels[keys % size]
    instance = torch.ones_like(own, dtype=torch.bool) if background is None else own != background
    return Regions(keys // size, own, sum_by(region, pixels, len(keys)), instance), region


def sum_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """``[size]``: the sum of the values of each index."""
    return values.new_zeros(size).index_add(0, index, values)
