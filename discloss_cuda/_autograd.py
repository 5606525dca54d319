"""The gradients of the ops: what is kept for them, and the gradient of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference

__all__ = [
    "NUM_TERMS",
    "Parameters",
    "accumulate_dtype",
    "gradient_of_gradient",
    "gradient_of_terms",
    "reference_terms",
    "save",
    "save_for_gradient",
]

# The results of discloss_cuda::forward (csrc/loss/discriminative_loss.h).
NUM_TERMS = 4  # loss, variance, distance, regularization


class Parameters(NamedTuple):
    """The numbers of a call, one argument of the ops (csrc/loss/parameters.h)."""

    delta_var: float
    delta_dist: float
    alpha: float
    beta: float
    gamma: float
    norm: int


def accumulate_dtype(embeddings: Tensor) -> torch.dtype:
    """The dtype of sums, loss and terms."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def save(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], keyword_only_inputs: Any = None
) -> None:
    """Keep for backward what forward was given and found."""
    embeddings, _, offsets, _, parameters, _ = inputs
    in_tensor = isinstance(parameters, Tensor)
    for_backward = output[NUM_TERMS:]
    ctx.mark_non_differentiable(*for_backward)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(embeddings, offsets, *for_backward, *([parameters] if in_tensor else []))
    ctx.parameters = [] if in_tensor else [parameters]


def gradient_of_terms(
    backward: Callable[..., Tensor], ctx: Any, *gradients: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Call the backward op, unless no term has a gradient."""
    of_terms = gradients[:NUM_TERMS]
    if all(gradient is None for gradient in of_terms):
        return (None,) * 6
    gradient = backward(*of_terms, *ctx.saved_tensors, *ctx.parameters)
    return (gradient, *(None,) * 5)


def save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep for the gradient of the gradient: upstream gradients, embeddings, offsets and slots."""
    ctx.save_for_backward(*inputs[:7])
    ctx.max_instances = inputs[8].shape[1]
    ctx.parameters = Parameters(*inputs[12])


def gradient_of_gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of the gradient, through the reference: vjp of (upstream, x) -> dL/dx."""
    *gradients, embeddings, offsets, slots = ctx.saved_tensors
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]

    def gradient_of(x: Tensor, *given: Tensor) -> Any:
        def terms_of(y: Tensor) -> tuple[Tensor, ...]:
            return reference_terms(y, slots, offsets, ctx.max_instances, ctx.parameters)

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


def reference_terms(
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
