"""The compiled ops as PyTorch sees them: fake kernels, autograd, and which door a call takes.

One op, three doors. A call goes to the op itself, whose gradient is registered with the dispatcher
(csrc/loss/autograd.h): through ``torch.ops`` where ``torch.compile``, ``torch.export`` or a
``__torch_function__`` has to see it, else by a call of its C++ handle, which is shorter. Under
``torch.func``, which sees no registered gradient, it goes through
:class:`DiscriminativeLossFunction`, which keeps the same results for the same backward op. Where
neither reaches (second derivatives, forward-mode differentiation, ``torch.func`` inside
``torch.compile``) the differentiable reference computes the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from . import _C, _vmap, reference

__all__ = ["DiscriminativeLossFunction", "accumulate_dtype", "apply", "current", "use"]

# The results of discloss_cuda::forward (csrc/loss/discriminative_loss.h).
NUM_TERMS = 4  # loss, variance, distance, regularization
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


@dataclasses.dataclass(frozen=True)
class Ops:
    """The ops of one namespace: those of the package, or an implementation under test."""

    forward: Any
    terms: Any  # forward by its handle
    backward: Any
    count_instances: Any
    batch_offsets: Any
    check_forward: Any
    device_types: tuple[str, ...]


class Parameters(NamedTuple):
    """The numbers of a call, one argument of the ops (csrc/loss/parameters.h)."""

    delta_var: float
    delta_dist: float
    alpha: float
    beta: float
    gamma: float
    norm: int


# --- gradient of the gradient --------------------------------------------------------------------


def _save_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep for the gradient of the gradient: upstream gradients, embeddings, offsets and slots."""
    ctx.save_for_backward(*inputs[:7])
    ctx.max_instances = inputs[8].shape[1]
    ctx.parameters = Parameters(*inputs[12])


def _backward_second(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of the gradient, through the reference: vjp of (upstream, x) -> dL/dx."""
    *gradients, embeddings, offsets, slots = ctx.saved_tensors
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]

    def gradient_of(x: Tensor, *given: Tensor) -> Any:
        def terms_of(y: Tensor) -> tuple[Tensor, ...]:
            return _reference_terms(y, slots, offsets, ctx.max_instances, ctx.parameters)

        terms, pullback = _vjp(terms_of, x)
        cotangents = [torch.zeros_like(term) for term in terms]
        for i, gradient in zip(present, given, strict=True):
            cotangents[i] = gradient.reshape(-1)
        return pullback(tuple(cotangents))[0]

    _, pullback = _vjp(gradient_of, embeddings, *(gradients[i] for i in present))
    of_embeddings, *of_given = pullback(upstream)
    of_gradients: list[Tensor | None] = [None] * NUM_TERMS
    for i, gradient in zip(present, of_given, strict=True):
        of_gradients[i] = gradient
    return (*of_gradients, of_embeddings, *(None,) * 8)


def _vjp(function: Callable[..., Any], *primals: Tensor) -> tuple[Any, Callable[..., Any]]:
    """``torch.func.vjp``, which composes with every other transform, without auxiliary output."""
    value, pullback = torch.func.vjp(function, *primals)[:2]
    return value, pullback


def _reference_terms(
    embeddings: Tensor,
    slots: Tensor,
    offsets: Tensor | None,
    max_instances: int,
    parameters: Parameters,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and terms ``[B]`` of the reference, from the slots that the op found."""
    variance, distance, regularization = reference.slot_terms(
        embeddings,
        slots,
        max_instances,
        offsets=offsets,
        delta_var=parameters.delta_var,
        delta_dist=parameters.delta_dist,
        norm=parameters.norm,
    )
    loss = (
        parameters.alpha * variance + parameters.beta * distance + parameters.gamma * regularization
    )
    return loss, variance, distance, regularization


# --- registration --------------------------------------------------------------------------------


def accumulate_dtype(embeddings: Tensor) -> torch.dtype:
    """The dtype of sums, loss and terms."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


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
    library.register_autograd(
        f"{namespace}::backward", _backward_second, setup_context=_save_second
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
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return Ops(
        forward=ops.forward.default,
        terms=_C.DirectForward(namespace).terms,
        backward=backward,
        count_instances=ops.count_instances.default,
        batch_offsets=ops.batch_offsets.default,
        check_forward=ops.check_forward.default,
        device_types=tuple(
            device
            for device, key in DISPATCH_KEYS.items()
            if has_kernel(f"{namespace}::forward", key)
        ),
    )


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


# --- doors ---------------------------------------------------------------------------------------


class _BackwardFunction(torch.autograd.Function):
    """The backward op for ``torch.func``, differentiable once more."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        gradient: Tensor = _current.backward(*arguments)
        return gradient

    setup_context = staticmethod(_save_second)
    backward = staticmethod(_backward_second)
    vmap = staticmethod(_vmap.batching_rule(lambda *a: _BackwardFunction.apply(*a), 5))  # type: ignore[no-untyped-call]


class DiscriminativeLossFunction(torch.autograd.Function):
    """The fused loss as a ``torch.autograd.Function``.

    Takes the arguments of the forward op and returns its results (csrc/loss/discriminative_loss.h):
    loss, variance, distance and regularization, each ``[B]`` and differentiable, then what
    backward needs. :func:`discloss_cuda.discriminative_loss` is the function to call.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = _current.forward(*arguments)
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep for backward what the forward op was given and found."""
        embeddings, _, offsets, _, ctx.parameters, _ = inputs
        for_backward = output[NUM_TERMS:]
        ctx.mark_non_differentiable(*for_backward)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(embeddings, offsets, *for_backward)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Call the backward op, unless no term has a gradient."""
        of_terms = gradients[:NUM_TERMS]
        if all(gradient is None for gradient in of_terms):
            return (None,) * 6
        gradient = _BackwardFunction.apply(*of_terms, *ctx.saved_tensors, ctx.parameters)  # type: ignore[no-untyped-call]
        return (gradient, *(None,) * 5)

    vmap = staticmethod(_vmap.batching_rule(lambda *a: DiscriminativeLossFunction.apply(*a), 2))  # type: ignore[no-untyped-call]


def apply(
    embeddings: Tensor,  # [B, D, *spatial] or [N_total, D]
    labels: Tensor,  # [B, *spatial] or [N_total]
    offsets: Tensor | None,  # [B + 1]
    max_instances: int,
    parameters: Parameters,
    ignore_labels: list[int],
    squeeze: bool,
    count: int,
) -> Sequence[Tensor]:
    """The first ``count`` of loss and terms, through the door that keeps every derivative.

    Each is ``[B]``; or, of one image and with ``squeeze``, perhaps ``[]``. Count is 1 or all.
    """
    arguments = (labels, offsets, max_instances, list(parameters), ignore_labels)
    under_func = torch._C._are_functorch_transforms_active()
    compiling = torch.compiler.is_compiling()
    results: Sequence[Tensor]
    if forward_ad._current_level >= 0 or (compiling and under_func):
        slots = _current.forward(embeddings.detach(), *arguments)[NUM_TERMS]
        return _reference_terms(embeddings, slots, offsets, max_instances, parameters)[:count]
    if under_func:
        results = DiscriminativeLossFunction.apply(embeddings, *arguments)  # type: ignore[no-untyped-call]
        return results[:count]
    overridden = has_torch_function((embeddings, labels, offsets))
    if compiling or overridden or type(max_instances) is not int:
        results = _current.forward(embeddings, *arguments, squeeze=squeeze)
        return results[:count]
    results = _current.terms(count, embeddings, *arguments, squeeze)
    return results
