"""The compiled ops as PyTorch sees them: fake kernels, batching rules, second derivatives."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import _C, _scheduled, _vmap
from ._autograd import (
    NUM_TERMS,
    Parameters,
    accumulate_dtype,
    gradient_of_gradient,
    gradient_of_terms,
    save,
    save_for_gradient,
)

__all__ = ["NUM_TERMS", "Ops", "Parameters", "bind", "current", "device_types", "use"]

DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
ANY_NUMBERS = [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]  # right parameters, where none matters


@dataclasses.dataclass(frozen=True)
class Ops:
    """The ops of one namespace: those of the package, or an implementation under test."""

    forward: Any
    terms: Any  # forward by its handle
    backward: Any
    count_instances: Any
    batch_offsets: Any
    check_forward: Any
    forward_scheduled: Any  # with the numbers in tensors
    backward_scheduled: Any
    count_instances_scheduled: Any
    device_types: tuple[str, ...]


# --- registration --------------------------------------------------------------------------------


def _fake_forward(
    check: Callable[..., None],
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None,
    max_instances: int,
    *rest: Any,
    squeeze: bool = False,
) -> tuple[Tensor, ...]:
    sizes = (*embeddings.shape, *labels.shape, max_instances)
    if offsets is None and all(type(size) is int for size in sizes):  # else not known yet
        check(embeddings, labels, None, max_instances, *rest)
    images = embeddings.shape[0] if offsets is None else offsets.shape[0] - 1
    accumulate = accumulate_dtype(embeddings)
    per_image = () if squeeze and images == 1 else (images,)
    terms = [embeddings.new_empty(per_image, dtype=accumulate) for _ in range(NUM_TERMS)]
    slots = labels.new_empty(labels.shape, dtype=torch.int32)
    instances = labels.new_empty((images,), dtype=torch.int64)
    counts = labels.new_empty((images, max_instances), dtype=torch.int64)
    table = (images, max_instances, embeddings.shape[1])
    tables = [embeddings.new_empty(table, dtype=accumulate) for _ in range(3)]
    return (*terms, slots, instances, counts, *tables)


def _fake_forward_scheduled(
    check: Callable[..., None], *arguments: Any, squeeze: bool = False
) -> tuple[Tensor, ...]:
    return _fake_forward(check, *arguments[:-2], ANY_NUMBERS, [], squeeze=squeeze)


def _fake_backward(*arguments: Any) -> Tensor:
    embeddings: Tensor = arguments[NUM_TERMS]
    return torch.empty_like(embeddings)


def _fake_count_instances(labels: Tensor, offsets: Tensor | None, ignore: list[int]) -> Any:
    return torch.library.get_ctx().new_dynamic_size()


def _fake_batch_offsets(batch: Tensor, batch_size: int) -> Tensor:
    return batch.new_empty((batch_size + 1,), dtype=torch.int64)


def bind(namespace: str) -> Ops:
    """Give the ops of a namespace fake kernels and batching rules, and backward its gradient."""
    library = torch.library
    ops = getattr(torch.ops, namespace)
    fake_forward = functools.partial(_fake_forward, ops.check_forward.default)
    library.register_fake(f"{namespace}::forward", fake_forward)
    library.register_fake(f"{namespace}::backward", _fake_backward)
    library.register_fake(f"{namespace}::count_instances", _fake_count_instances)
    library.register_fake(f"{namespace}::batch_offsets", _fake_batch_offsets)
    backward = ops.backward.default
    scheduled = {
        f"{name}_scheduled": _scheduled.define(getattr(ops, name).default, fake)
        for name, fake in {
            "forward": functools.partial(_fake_forward_scheduled, ops.check_forward.default),
            "backward": _fake_backward,
            "count_instances": _fake_count_instances,
        }.items()
    }
    library.register_autograd(
        f"{namespace}::forward_scheduled",
        functools.partial(gradient_of_terms, scheduled["backward_scheduled"]),
        setup_context=save,
    )
    library.register_autograd(
        f"{namespace}::backward", gradient_of_gradient, setup_context=save_for_gradient
    )
    # offsets are the third argument of forward, the sixth of backward
    library.register_vmap(f"{namespace}::forward", _vmap.forward(ops.forward.default))
    library.register_vmap(f"{namespace}::backward", _vmap.batching_rule(backward, 5))
    library.register_vmap(
        f"{namespace}::count_instances", _vmap.count_instances(ops.count_instances.default)
    )
    library.register_vmap(
        f"{namespace}::batch_offsets", _vmap.batch_offsets(ops.batch_offsets.default)
    )
    return Ops(
        forward=ops.forward.default,
        terms=_C.DirectForward(namespace).terms,
        backward=backward,
        count_instances=ops.count_instances.default,
        batch_offsets=ops.batch_offsets.default,
        check_forward=ops.check_forward.default,
        **scheduled,
        device_types=device_types(f"{namespace}::forward"),
    )


def device_types(op: str) -> tuple[str, ...]:
    """The devices for which this build has a kernel of an op, as in "discloss_cuda::forward"."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(device for device, key in DISPATCH_KEYS.items() if has_kernel(op, key))


_current = bind("discloss_cuda")


def current() -> Ops:
    """The ops that calls go to."""
    return _current


@contextlib.contextmanager
def use(ops: Ops) -> Iterator[None]:
    """Send calls to another implementation of the ops, for tests of that implementation."""
    global _current
    previous, _current = _current, ops
    try:
        yield
    finally:
        _current = previous
