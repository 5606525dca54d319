"""The inputs that are timed: label maps as they occur in use, with embeddings around their means.

A workload is a name, a number of channels and a label map. The synthetic maps are Voronoi regions
(neighbouring pixels mostly share an instance, as in a segmentation) or, as the opposite, an id
drawn per pixel. The real ones come from `benchmarks/data`. `build` adds the embeddings and what
only the baselines are given: the labels made consecutive.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from support.cases import clustered_embeddings, real_clouds, real_labels, voronoi_labels


@dataclass(frozen=True)
class LabelMap:
    """The ids of a whole batch."""

    ids: Tensor  # [B, *spatial], or [N_total] with offsets; any integer dtype
    offsets: Tensor | None = None  # [B + 1] int64, packed clouds only
    ignore_label: int | None = None


@dataclass(frozen=True)
class Workload:
    """A named input, not yet in memory."""

    name: str
    channels: int  # D
    about: str
    labels: Callable[[], LabelMap]
    quick: bool = False  # part of --quick
    hidden: bool = False  # only when asked for by name
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Problem:
    """A workload in memory: what an implementation is given."""

    embeddings: Tensor  # [B, D, *spatial] or [N_total, D], a leaf that requires a gradient
    labels: Tensor  # [B, *spatial] or [N_total], ids as they come
    offsets: Tensor | None  # [B + 1]
    ignore_label: int | None
    images: int  # B
    instances: int  # K, the most of any image
    slots: Tensor  # [B, N] or [N_total] int64: 0..K_b - 1 within each image, K where ignored
    flat: Tensor  # [B * N] or [N_total] int64: image * bins + slot

    @property
    def bins(self) -> int:
        """Slots of one image: K, and one more for ignored pixels where there may be any."""
        return self.instances + (self.ignore_label is not None)

    def per_image(self, values: Tensor) -> list[Tensor]:
        """One `[D, N]` an image, of a tensor shaped like the embeddings."""
        if self.offsets is None:
            return list(values.flatten(2))
        return [part.t() for part in values.split(self.offsets.diff().tolist())]

    def slots_per_image(self) -> list[Tensor]:
        """One `[N]` an image."""
        if self.offsets is None:
            return list(self.slots)
        return list(self.slots.split(self.offsets.diff().tolist()))


def coherent(batch: int, spatial: Sequence[int], instances: int, blocks: int = 1) -> LabelMap:
    """Voronoi regions under ids that are neither consecutive nor sorted by place.

    `blocks` cuts the last two axes into that many pieces each and fills every block on its own:
    the generator visits all pixels once an instance, which is too long for thousands.
    """
    each = instances // blocks**2
    sizes = (*spatial[:-2], *(extent // blocks for extent in spatial[-2:]))

    def image(b: int) -> Tensor:
        numbers = range(blocks**2 * b, blocks**2 * (b + 1))
        parts = [voronoi_labels(sizes, each, seed=s) + s % blocks**2 * each for s in numbers]
        rows = [torch.cat(parts[i : i + blocks], -1) for i in range(0, blocks**2, blocks)]
        return torch.cat(rows, -2) - 1

    return LabelMap(_scattered_ids(instances)[torch.stack([image(b) for b in range(batch)])])


def incoherent(batch: int, spatial: Sequence[int], instances: int) -> LabelMap:
    """An id drawn for every pixel."""
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(instances, (batch, *spatial), generator=generator)
    return LabelMap(_scattered_ids(instances)[slots])


def _scattered_ids(instances: int) -> Tensor:
    generator = torch.Generator().manual_seed(instances)
    return 1 + torch.randperm(4 * instances, generator=generator)[:instances]


def real(name: str) -> LabelMap:
    """Real label maps; 0 is background there, and ignored."""
    return LabelMap(real_labels(name), ignore_label=0)


def embryo_clip() -> LabelMap:
    """Eight frames of eight slices, as one clip `[1, 8, 8, 101, 151]`."""
    return LabelMap(real_labels("embryo")[None, :8, 10:18].contiguous(), ignore_label=0)


def embryo_clouds() -> LabelMap:
    """The frames as 31 clouds, their points shuffled: a cloud has no raster order."""
    ids, offsets = real_clouds()
    generator = torch.Generator().manual_seed(0)
    clouds = ids.split(offsets.diff().tolist())
    shuffled = [cloud[torch.randperm(len(cloud), generator=generator)] for cloud in clouds]
    return LabelMap(torch.cat(shuffled), offsets=offsets)


def _coherent(name: str, shape: Sequence[int], instances: int, about: str) -> Workload:
    """A synthetic workload from the shape `[B, D, *spatial]` of its embeddings."""
    return Workload(name, shape[1], about, partial(coherent, shape[0], shape[2:], instances))


WORKLOADS = (
    Workload("tiny", 4, "for tests", partial(coherent, 2, (24, 20), 5), hidden=True),
    _coherent("small", (1, 8, 64, 64), 8, "one small image: the overhead of a call"),
    _coherent("2d-k16", (4, 16, 256, 256), 16, "images, few instances"),
    _coherent("2d-k64", (1, 32, 512, 512), 64, "image, wide embedding"),
    _coherent("2d-k200", (1, 16, 512, 1024), 200, "image of street-scene size"),
    _coherent("2d-batch", (8, 16, 512, 512), 32, "batch of larger images"),
    _coherent("2d-k1000", (1, 16, 512, 512), 1000, "image, a thousand instances"),
    Workload(
        "random-ids", 16, "an id drawn for every pixel", partial(incoherent, 8, (512, 512), 32)
    ),
    _coherent("clip", (1, 8, 8, 192, 640), 50, "video clip, ids valid in all its frames"),
    _coherent("volume", (1, 16, 32, 128, 128), 100, "volume"),
    Workload(
        "volume-large",
        16,
        "batch of volumes",
        partial(coherent, 2, (32, 256, 256), 100),
        devices=("cuda",),
    ),
    Workload(
        "volume-k10000",
        16,
        "volume, ten thousand instances",
        partial(coherent, 1, (64, 256, 256), 10_000, blocks=4),
    ),
    Workload("nuclei", 16, "real image", partial(real, "nuclei"), quick=True),
    Workload("nuclei-batch", 16, "real images", partial(real, "nuclei_batch"), quick=True),
    Workload("embryo-clip", 8, "real volumes over time, ids are tracks", embryo_clip, quick=True),
    Workload("embryo-clouds", 8, "real packed clouds, points unordered", embryo_clouds),
)


def build(workload: Workload, dtype: torch.dtype, device: str) -> Problem:
    """Puts a workload into memory: labels, slots, and clustered embeddings of a fixed seed."""
    labels = workload.labels()
    offsets = labels.offsets
    maps = list(labels.ids) if offsets is None else labels.ids.split(offsets.diff().tolist())
    found = [_slots_of(ids, labels.ignore_label) for ids in maps]
    instances = max(count for _, count in found)
    slots = [torch.where(slots < 0, instances, slots) for slots, _ in found]
    bins = instances + (labels.ignore_label is not None)
    flat = torch.cat([image * bins + slots for image, slots in enumerate(slots)])
    if offsets is None:
        embeddings = clustered_embeddings(labels.ids, workload.channels, dtype=dtype)
    else:
        clouds = [
            clustered_embeddings(ids[None], workload.channels, seed=seed, dtype=dtype)[0].t()
            for seed, ids in enumerate(maps)
        ]
        embeddings = torch.cat(clouds).contiguous()
    return Problem(
        embeddings=embeddings.to(device).requires_grad_(),
        labels=labels.ids.to(device),
        offsets=None if offsets is None else offsets.to(device),
        ignore_label=labels.ignore_label,
        images=len(maps),
        instances=instances,
        slots=(torch.stack(slots) if offsets is None else torch.cat(slots)).to(device),
        flat=flat.to(device),
    )


def _slots_of(ids: Tensor, ignore_label: int | None) -> tuple[Tensor, int]:
    """The rank `[N]` of each pixel's id among the ids of its image, -1 if ignored; their number."""
    values, inverse = torch.unique(ids.flatten().to(torch.int64), return_inverse=True)
    kept = torch.ones_like(values, dtype=torch.bool)
    if ignore_label is not None:
        kept = values != ignore_label
    rank = torch.where(kept, kept.cumsum(0) - 1, -1)
    return rank[inverse], int(kept.sum())
