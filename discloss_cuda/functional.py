"""The loss as a function: argument checks, the call of the op, reduction over the images."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import torch
from torch import Tensor

from . import _ops, _sharded
from ._options import ShardedOptions, ShardedPackedOptions
from .terms import DiscriminativeLossTerms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["discriminative_loss", "discriminative_loss_packed"]

CUDA_IS_MISSING = (
    ". The CUDA backend is built where nvcc is found: install the CUDA toolkit and reinstall with "
    "FORCE_CUDA=1 pip install ."
)
REDUCTIONS = ("none", "mean", "sum")
MOST_INSTANCES = 2**31 - 1  # slots are int32
GRAD_SCALES = ("exact", "ddp")


@overload
def discriminative_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    return_terms: Literal[False] = False,
    **options: Unpack[ShardedOptions],
) -> Tensor: ...
@overload
def discriminative_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    return_terms: Literal[True],
    **options: Unpack[ShardedOptions],
) -> DiscriminativeLossTerms: ...
@overload
def discriminative_loss(
    embeddings: Tensor, labels: Tensor, *, return_terms: bool, **options: Unpack[ShardedOptions]
) -> Tensor | DiscriminativeLossTerms: ...
def discriminative_loss(
    embeddings: Tensor,  # [B, D, *spatial]
    labels: Tensor,  # [B, *spatial]
    *,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.001,
    norm: int = 2,
    ignore_label: int | Sequence[int] | None = None,
    max_instances: int | None = None,
    reduction: str = "mean",
    return_terms: bool = False,
    process_group: ProcessGroup | None = None,
    grad_scale: str = "exact",
) -> Tensor | DiscriminativeLossTerms:
    r"""Discriminative loss for instance embeddings of images, volumes, clips or clouds.

    De Brabandere, Neven, Van Gool, "Semantic Instance Segmentation with a Discriminative Loss
    Function", arXiv 1708.02551, eq. 1-4; over a clip it is the loss of Hu et al., "Learning a
    Spatio-Temporal Embedding for Video Instance Segmentation", arXiv 1912.08969. For an image of
    K instances, with ``mu_k`` the mean embedding of the ``N_k`` pixels of instance k and
    ``[t]_+ = max(t, 0)``,

        L_var  = 1/K  sum_k 1/N_k sum_{i in k} [ |x_i - mu_k| - delta_var ]_+^2
        L_dist = 1/(K(K-1)) sum_{a != b} [ 2 delta_dist - |mu_a - mu_b| ]_+^2
        L_reg  = 1/K  sum_k |mu_k|
        L      = alpha L_var + beta L_dist + gamma L_reg

    An image without instances has loss 0 and gradient 0, and still counts in the mean.

    **Background is an instance like any other unless** ``ignore_label`` **names it.** Most
    training code whose label 0 is background wants ``ignore_label=0``.

    Args:
        embeddings: ``[B, D, *spatial]`` with one or more spatial axes; float32, float64, float16
            or bfloat16. Contiguous and channels-last tensors, and slices of them along batch or
            channel, are read in place; other strides cost one copy.
        labels: ``[B, *spatial]``, or ``[B, 1, *spatial]`` as MONAI has them (no copy is made): the
            instance id of each pixel; bool, int8, int16, int32, int64, uint8 or uint16. Ids are
            compared as int64 values and need not be consecutive, positive or small. Over a clip
            ``[B, T, H, W]`` an id is one instance in all frames.
        delta_var: pixels nearer than this to their mean are not pulled, >= 0.
        delta_dist: means further apart than ``2 * delta_dist`` are not pushed, >= 0.
        alpha: weight of the variance (pull) term.
        beta: weight of the distance (push) term.
        gamma: weight of the regularization term.
        norm: 2 for the Euclidean norm, 1 for the sum of absolute values.
        ignore_label: an id or several; their pixels take part in nothing and get gradient 0.
        max_instances: the most instances (ignored ids not counted) any image may have. Given, a
            CUDA call never waits for the device and can be captured in a CUDA graph; an image
            with more is a ``ValueError`` on the CPU and a device-side assertion on CUDA. None:
            the number is found first, which on CUDA reads one number back to the host.
        reduction: "mean" over the B images, "sum", or "none" for one loss per image.
        return_terms: return :class:`DiscriminativeLossTerms`: the loss and the three unweighted
            terms, reduced like the loss and differentiable.
        process_group: the ranks over which the pixels of each image are spread. Every rank calls
            with the same B, D, dtypes and keywords, and with its own pixels, of any number; an
            instance may have pixels on several ranks. Loss and terms are those of the whole
            images, equal on all ranks. Needs ``max_instances``, which holds for all ranks
            together; more is the same ``ValueError`` on each. Differentiable once; not under
            ``torch.compile``, ``torch.func`` or forward-mode differentiation. On CUDA it waits
            for the device.
        grad_scale: with ``process_group``, whose gradient to give to this rank's pixels: "exact"
            that of the loss, "ddp" that times the number of ranks, for
            ``DistributedDataParallel``, which divides by it. The gradient takes the upstream
            gradient of this rank, which has to be the same on all.

    Returns:
        A scalar, or ``[B]`` with ``reduction="none"``; float32, or float64 for float64
        embeddings. With ``return_terms`` a named tuple of four of them.

    Raises:
        TypeError: a dtype, or a hyper-parameter that is not a number (a tensor is not one).
        ValueError: shapes, devices, values out of range, more than ``max_instances`` instances.

    Example:
        >>> import torch
        >>> from discloss_cuda import discriminative_loss
        >>> embeddings = torch.tensor([[[0.0, 2.0, 5.0, 5.0]]], requires_grad=True)  # [1, 1, 4]
        >>> labels = torch.tensor([[7, 7, 3, 0]])  # [1, 4]
        >>> loss = discriminative_loss(embeddings, labels, ignore_label=0)
        >>> round(loss.item(), 3)  # L_var = 0.125, L_dist = 0, L_reg = 3
        0.128
        >>> loss.backward()
        >>> embeddings.grad
        tensor([[[-0.2498,  0.2503,  0.0005,  0.0000]]])
    """
    _check_inputs(embeddings, labels)
    if labels.dim() == embeddings.dim():
        labels = _without_channel(embeddings, labels)
    return _loss(
        embeddings,
        labels,
        None,
        check_parameters(delta_var, delta_dist, alpha, beta, gamma, norm),
        check_ignore_label(ignore_label),
        check_max_instances(max_instances),
        check_reduction(reduction),
        return_terms,
        process_group,
        grad_scale,
    )


@overload
def discriminative_loss_packed(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None = None,
    *,
    return_terms: Literal[False] = False,
    **options: Unpack[ShardedPackedOptions],
) -> Tensor: ...
@overload
def discriminative_loss_packed(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None = None,
    *,
    return_terms: Literal[True],
    **options: Unpack[ShardedPackedOptions],
) -> DiscriminativeLossTerms: ...
@overload
def discriminative_loss_packed(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None = None,
    *,
    return_terms: bool,
    **options: Unpack[ShardedPackedOptions],
) -> Tensor | DiscriminativeLossTerms: ...
def discriminative_loss_packed(
    embeddings: Tensor,  # [N_total, D]
    labels: Tensor,  # [N_total]
    offsets: Tensor | None = None,  # [B + 1]
    *,
    batch: Tensor | None = None,  # [N_total]
    batch_size: int | None = None,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.001,
    norm: int = 2,
    ignore_label: int | Sequence[int] | None = None,
    max_instances: int | None = None,
    reduction: str = "mean",
    return_terms: bool = False,
    process_group: ProcessGroup | None = None,
    grad_scale: str = "exact",
) -> Tensor | DiscriminativeLossTerms:
    """:func:`discriminative_loss` of point clouds of different sizes, one behind the other.

    Cloud b is the points ``offsets[b]:offsets[b + 1]``, or those with ``batch == b``. A cloud may
    be empty.

    Args:
        embeddings: ``[N_total, D]``; float32, float64, float16 or bfloat16.
        labels: ``[N_total]``, the instance id of each point; ids of different clouds are
            different instances.
        offsets: ``[B + 1]`` int64, ascending from 0 to N_total. Exactly one of ``offsets`` and
            ``batch`` is given.
        batch: ``[N_total]`` int64, ascending index of each point's cloud.
        batch_size: B, with ``batch``. None: ``batch[-1] + 1``, which on CUDA reads one number
            back to the host. Needed with ``process_group``.

    The other arguments, the result and the errors are those of :func:`discriminative_loss`. The
    values of ``offsets`` and ``batch`` are checked on the CPU by a ``ValueError``, on CUDA by a
    device-side assertion.

    Example:
        >>> import torch
        >>> from discloss_cuda import discriminative_loss_packed
        >>> embeddings = torch.tensor([[0.0], [2.0], [5.0], [5.0]])  # [4, 1]
        >>> labels = torch.tensor([7, 7, 3, 0])
        >>> offsets = torch.tensor([0, 3, 4])  # two clouds, of 3 points and of 1
        >>> loss = discriminative_loss_packed(
        ...     embeddings, labels, offsets, ignore_label=0, reduction="none"
        ... )
        >>> [round(value, 3) for value in loss.tolist()]
        [0.128, 0.0]
    """
    _check_inputs(embeddings, labels)
    parameters = check_parameters(delta_var, delta_dist, alpha, beta, gamma, norm)
    if process_group is not None and batch is not None and batch_size is None:
        raise ValueError("batch_size: expected an int with batch and process_group, got None")
    return _loss(
        embeddings,
        labels,
        _offsets(labels, offsets, batch, batch_size),
        parameters,
        check_ignore_label(ignore_label),
        check_max_instances(max_instances),
        check_reduction(reduction),
        return_terms,
        process_group,
        grad_scale,
    )


def _without_channel(embeddings: Tensor, labels: Tensor) -> Tensor:
    """A view ``[B, *spatial]`` of ``[B, 1, *spatial]``; any other shape is left to the op's checks.

    ``[B, *spatial]`` has an axis less than the embeddings, so no shape can mean both.
    """
    images, _, *spatial = embeddings.shape
    return labels.squeeze(1) if labels.shape == (images, 1, *spatial) else labels


def _loss(
    embeddings: Tensor,
    labels: Tensor,
    offsets: Tensor | None,
    parameters: _ops.Parameters,
    ignore_labels: list[int],
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
            max_instances = _ops.current().count_instances(labels, offsets, ignore_labels)
        results = _ops.apply(
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
    if images == 1:
        return per_image.squeeze(0)  # no arithmetic, neither here nor in backward
    if reduction == "sum" or images == 0:
        return per_image.sum()
    return per_image.mean()


def _offsets(
    labels: Tensor, offsets: Tensor | None, batch: Tensor | None, batch_size: int | None
) -> Tensor:
    """The offsets of a packed batch, however it was described."""
    if (offsets is None) == (batch is None):
        given = "both" if batch is not None else "neither"
        raise ValueError(f"offsets, batch: expected exactly one of them, got {given}")
    if offsets is not None:
        if batch_size is not None:
            raise ValueError(f"batch_size: expected only with batch, got {batch_size} with offsets")
        _check_tensor("offsets", offsets)
        _check_device("offsets", offsets, "labels", labels)
        return offsets
    assert batch is not None
    _check_tensor("batch", batch)
    _check_device("batch", batch, "labels", labels)
    if batch.shape != labels.shape:
        raise ValueError(
            f"batch: expected shape [N_total] = {list(labels.shape)}, got {list(batch.shape)}"
        )
    if batch_size is None:
        if batch.is_meta:
            raise ValueError("batch_size: expected an int for meta tensors, got None")
        batch_size = int(batch[-1]) + 1 if batch.numel() else 0
    size = _check_size("batch_size", batch_size)
    result: Tensor = _ops.current().batch_offsets(batch, size)
    return result


# --- checks of what is no tensor, and of what no op could be asked; the rest: csrc/check.h --------


def check_parameters(
    delta_var: float, delta_dist: float, alpha: float, beta: float, gamma: float, norm: int
) -> _ops.Parameters:
    """The hyper-parameters as the op takes them, or an error that names the wrong one."""
    checked = (
        _check_number("delta_var", delta_var),
        _check_number("delta_dist", delta_dist),
        _check_number("alpha", alpha),
        _check_number("beta", beta),
        _check_number("gamma", gamma),
    )
    if delta_var < 0:
        raise ValueError(f"delta_var: expected a number >= 0, got {delta_var}")
    if delta_dist < 0:
        raise ValueError(f"delta_dist: expected a number >= 0, got {delta_dist}")
    if not _is_real(norm):
        raise TypeError(f"norm: expected 1 or 2, got {_describe(norm)}")
    if norm not in (1, 2):
        raise ValueError(f"norm: expected 1 or 2, got {norm}")
    return _ops.Parameters(*checked, int(norm))


def _check_number(name: str, value: float) -> float:
    if type(value) is not float and not _is_real(value):
        raise TypeError(f"{name}: expected a number, got {_describe(value)}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def _is_real(value: object) -> bool:
    # The types that nearly all calls bring come first: an abstract class is slow to ask.
    if type(value) is float or type(value) is int:
        return True
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_ignore_label(ignore_label: Any) -> list[int]:
    """The ignored ids as a list of int64 values."""
    if ignore_label is None:
        return []
    several = isinstance(ignore_label, Collection) and not isinstance(ignore_label, Tensor | str)
    if not several and not isinstance(ignore_label, numbers.Integral):
        raise TypeError(
            f"ignore_label: expected None, an int or several, got {_describe(ignore_label)}"
        )
    ids: list[Any] = list(ignore_label) if several else [ignore_label]
    for value in ids:
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"ignore_label: expected ints, got {_describe(value)}")
        if not -(2**63) <= int(value) < 2**63:
            raise ValueError(f"ignore_label: expected ids in the range of int64, got {value}")
    return [int(value) for value in ids]


def check_max_instances(max_instances: int | None) -> int | None:
    """``max_instances`` as it is, or an error."""
    if max_instances is None:
        return None
    size = _check_size("max_instances", max_instances)
    if type(size) is int and size > MOST_INSTANCES:
        raise ValueError(f"max_instances: expected a number from 0 to {MOST_INSTANCES}, got {size}")
    return size


def _check_size(name: str, size: int) -> int:
    if type(size) is not int and (
        isinstance(size, bool) or not isinstance(size, numbers.Integral | torch.SymInt)
    ):
        raise TypeError(f"{name}: expected an int or None, got {_describe(size)}")
    if size < 0:
        raise ValueError(f"{name}: expected a number >= 0, got {size}")
    return size if isinstance(size, torch.SymInt) else int(size)


def check_reduction(reduction: str) -> str:
    """``reduction`` as it is, or an error."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction: expected "none", "mean" or "sum", got {reduction!r}')
    return reduction


def check_sharding(
    process_group: ProcessGroup | None, grad_scale: str, max_instances: int | None
) -> tuple[ProcessGroup, int]:
    """The process group, and ``max_instances`` which it needs, as they are, or an error."""
    if grad_scale not in GRAD_SCALES:
        raise ValueError(f'grad_scale: expected "exact" or "ddp", got {grad_scale!r}')
    if process_group is None:
        raise ValueError(f'grad_scale: expected "exact" without process_group, got {grad_scale!r}')
    available = torch.distributed.is_available()
    if not available or not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            "process_group: expected None or a torch.distributed.ProcessGroup that this process "
            f"belongs to, got {_describe(process_group)}"
        )
    if max_instances is None:
        raise ValueError("max_instances: expected an int with process_group, got None")
    return process_group, max_instances


def _check_inputs(embeddings: Tensor, labels: Tensor) -> None:
    _check_tensor("embeddings", embeddings)
    _check_tensor("labels", labels)
    if embeddings.is_cpu and labels.is_cpu:
        return  # every build has the backend; to ask a device for its type is slow
    supported = _ops.current().device_types
    device = embeddings.device
    if device.type not in supported and device.type != "meta":
        raise ValueError(
            f"embeddings: expected a tensor on {' or '.join(supported)}, the backends of this "
            f"build of discloss_cuda, got one on {device}"
            + (CUDA_IS_MISSING if device.type == "cuda" else "")
        )
    _check_device("labels", labels, "embeddings", embeddings)


def _check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}"
        )


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_describe(value)}")


def _describe(value: object) -> str:
    return "a tensor" if isinstance(value, Tensor) else f"{value!r} of type {type(value).__name__}"
