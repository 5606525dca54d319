"""The loss as a function, of images and of packed clouds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Unpack, overload

from torch import Tensor

from ._call import loss, offsets_of, without_channel
from ._check_arguments import (
    check_ignore_label,
    check_inputs,
    check_max_instances,
    check_parameters,
    check_reduction,
    refuse_unknown,
)
from ._options import ShardedOptions, ShardedPackedOptions
from .terms import DiscriminativeLossTerms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["discriminative_loss", "discriminative_loss_packed"]


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
    **unknown: object,
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
            ``[B, T, H, W]`` an id is one instance in all frames. A subclass such as MONAI's
            MetaTensor is read as a plain tensor; a compiled graph copies it.
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

    The five numbers from ``delta_var`` to ``gamma`` may follow a schedule: under ``torch.compile``
    two graphs serve all their values. The second reads them when it runs, so that in it the loss is
    no part of a CUDA graph (``mode="reduce-overhead"``).

    Returns:
        A scalar, or ``[B]`` with ``reduction="none"``; float32, or float64 for float64
        embeddings. With ``return_terms`` a named tuple of four of them.

    Raises:
        TypeError: a dtype, a tensor that is not dense, a keyword that there is not, or a
            hyper-parameter that is not a number (a tensor is not one; a NumPy number is).
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
    if unknown:
        refuse_unknown("discriminative_loss", unknown)
    labels = check_inputs(embeddings, labels)
    if labels.dim() == embeddings.dim():
        labels = without_channel(embeddings, labels)
    return loss(
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
    **unknown: object,
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
    if unknown:
        refuse_unknown("discriminative_loss_packed", unknown)
    labels = check_inputs(embeddings, labels)
    parameters = check_parameters(delta_var, delta_dist, alpha, beta, gamma, norm)
    if process_group is not None and batch is not None and batch_size is None:
        raise ValueError("batch_size: expected an int with batch and process_group, got None")
    return loss(
        embeddings,
        labels,
        offsets_of(labels, offsets, batch, batch_size),
        parameters,
        check_ignore_label(ignore_label),
        check_max_instances(max_instances),
        check_reduction(reduction),
        return_terms,
        process_group,
        grad_scale,
    )
