"""The loss and its gradient in float64, from the formulas: what every result is held to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .baselines import ALPHA, BETA, DELTA_DIST, DELTA_VAR, GAMMA
from .workloads import Problem

LOSS_TOLERANCE = 1e-5  # of |loss|: room for baselines that sum float32 in plain order
GRAD_TOLERANCE = 1e-4  # of the largest |gradient| of the image
HALF_TOLERANCE = 2**-8  # on top of it, for a gradient rounded to bfloat16

PAIRS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Exact:
    """The result in float64."""

    loss: float
    grads: list[Tensor]  # one [D, N] an image


@dataclass(frozen=True)
class Errors:
    """How far a result is off: relative loss, and gradient over the largest |gradient|."""

    loss: float
    grad: float
    right: bool


def compute(problem: Problem) -> Exact:
    """The mean loss over the images, and its gradient."""
    loss, grads = 0.0, []
    images = problem.per_image(problem.embeddings.detach())
    for x, slots in zip(images, problem.slots_per_image(), strict=True):
        value, grad = _image(x.double(), slots, problem.instances)
        loss += value / problem.images
        grads.append(grad.div_(problem.images))
    return Exact(loss, grads)


def compare(problem: Problem, exact: Exact, loss: Tensor, grad: Tensor) -> Errors:
    """Judges one result; NaN is wrong."""
    loss_error = abs(loss.item() - exact.loss) / max(abs(exact.loss), 1e-30)
    grad_error = 0.0
    for got, expected in zip(problem.per_image(grad), exact.grads, strict=True):
        if got.numel():
            scale = max(expected.abs().max().item(), 1e-30)
            worst = (got.double() - expected).abs().max().item() / scale
            grad_error = worst if worst != worst else max(worst, grad_error)
        if grad_error != grad_error:
            break
    half = grad.dtype in (torch.float16, torch.bfloat16)
    grad_tolerance = GRAD_TOLERANCE + (HALF_TOLERANCE if half else 0.0)
    right = loss_error <= LOSS_TOLERANCE and grad_error <= grad_tolerance
    return Errors(loss_error, grad_error, right and grad.dtype == problem.embeddings.dtype)


def _image(x: Tensor, slots: Tensor, ignored: int) -> tuple[float, Tensor]:
    """One image `[D, N]` with slots `[N]`: the loss, and the gradient `[D, N]`."""
    counts = torch.bincount(slots, minlength=ignored + 1).double()
    counts[ignored] = 0
    k = int((counts > 0).sum())
    if k == 0:
        return 0.0, torch.zeros_like(x)
    n = counts.clamp(min=1)
    weight = (counts > 0) / (k * n)  # 1 / (K N_k); 0 for an empty slot and for ignored pixels

    def sum_by_slot(values: Tensor) -> Tensor:
        return values.new_zeros(x.shape[0], ignored + 1).index_add_(1, slots, values)

    mu = sum_by_slot(x) / n  # [D, K]
    v = x - mu[:, slots]
    length = v.norm(dim=0)
    hinge = (length - DELTA_VAR).clamp(min=0)
    loss = ALPHA * float((weight[slots] * hinge.square()).sum())
    v *= 2 * ALPHA * weight[slots] * hinge / length.clamp(min=1e-300)  # eq. g_i
    of_mean = -sum_by_slot(v)  # -S_k

    kept = counts > 0  # [K]
    push, pushed = _push(mu[:, kept].t())
    size = mu.norm(dim=0)
    loss += push + GAMMA / k * float(size[kept].sum())
    of_mean[:, kept] += pushed.t()  # P_k
    of_mean += GAMMA / k * mu / size.clamp(min=1e-300)  # R_k
    v += (of_mean * (kept / n))[:, slots]
    return loss, v


def _push(mu: Tensor) -> tuple[float, Tensor]:
    """`beta L_dist` of the means `[K, D]`, and `P_k` `[K, D]`, some rows of the pairs at a time."""
    k = mu.shape[0]
    scale = BETA / max(k * (k - 1), 1)
    loss, pushed = 0.0, torch.zeros_like(mu)
    rows = max(1, PAIRS_AT_ONCE // k)
    for start in range(0, k, rows):
        part = mu[start : start + rows]
        apart = torch.cdist(part, mu, compute_mode="donot_use_mm_for_euclid_dist")
        hinge = (2 * DELTA_DIST - apart).clamp(min=0)
        hinge.diagonal(start).zero_()  # a = b is no pair
        loss += scale * float(hinge.square().sum())
        pull = hinge / apart.clamp(min=1e-300)
        pull[apart == 0] = 0  # equal means: the derivative of the norm is 0
        pushed[start : start + rows] = -4 * scale * (part * pull.sum(1, keepdim=True) - pull @ mu)
    return loss, pushed
