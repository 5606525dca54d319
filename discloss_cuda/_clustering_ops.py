"""The op of the clustering as PyTorch sees it: fake kernel and batching rule."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import _ops, _vmap

__all__ = ["ClusterOps", "bind", "current", "use"]


@dataclasses.dataclass(frozen=True)
class ClusterOps:
    """The op of one namespace: that of the package, or an implementation under test."""

    cluster: Any
    device_types: tuple[str, ...]


def _fake_cluster(
    check: Callable[..., None],
    embeddings: Tensor,
    offsets: Tensor | None,
    foreground: Tensor | None,
    modes: Tensor | None,
    *numbers: Any,
) -> tuple[Tensor, ...]:
    tensors = (embeddings, offsets, foreground, modes)
    sizes = [size for tensor in tensors if tensor is not None for size in tensor.shape]
    if all(type(size) is int for size in sizes):  # else not known yet
        check(*tensors, *numbers)
    images = embeddings.shape[0] if offsets is None else offsets.shape[0] - 1
    rows = numbers[4]

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return embeddings.new_empty(shape, dtype=dtype)

    return (
        empty(embeddings.shape[0], *embeddings.shape[2:]),  # ids
        empty(images, rows, embeddings.shape[1], dtype=torch.float32),  # modes
        empty(images, rows),  # counts
        empty(images, rows, dtype=torch.int64),  # classes
        empty(images, rows),  # source
        empty(images),  # number
        empty(images, dtype=torch.bool),  # truncated
    )


def bind(namespace: str) -> ClusterOps:
    """Give the op of a namespace its fake kernel and its batching rule."""
    ops = getattr(torch.ops, namespace)
    cluster = ops.cluster.default
    fake = functools.partial(_fake_cluster, ops.check_cluster.default)
    torch.library.register_fake(f"{namespace}::cluster", fake)
    rule = _vmap.batching_rule(cluster, 1)  # offsets are the second argument
    torch.library.register_vmap(f"{namespace}::cluster", rule)
    return ClusterOps(cluster, _ops.device_types(f"{namespace}::cluster"))


_current = bind("discloss_cuda")


def current() -> ClusterOps:
    """The op that calls go to."""
    return _current


@contextlib.contextmanager
def use(ops: ClusterOps) -> Iterator[None]:
    """Send calls to another implementation of the op, for tests of that implementation."""
    global _current
    previous, _current = _current, ops
    try:
        yield
    finally:
        _current = previous
