"""From embeddings to instances: density peaks on a sample, as a function and as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, Unpack, overload

from torch import Tensor, nn
from typing_extensions import TypeVar

from . import _clustering_ops, _ops
from ._clustering_options import (
    ClusteringOptions,
    ClusterNumbers,
    Clusters,
    ModuleClusteringOptions,
    PackedBatchClusteringOptions,
    whole,
)
from ._messages import describe

__all__ = ["Clusters", "EmbeddingClustering", "cluster_embeddings", "cluster_embeddings_packed"]


@overload
def cluster_embeddings(
    embeddings: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[False] = False,
    **options: Unpack[ClusteringOptions],
) -> Tensor: ...
@overload
def cluster_embeddings(
    embeddings: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[True],
    **options: Unpack[ClusteringOptions],
) -> Clusters: ...
@overload
def cluster_embeddings(
    embeddings: Tensor,
    foreground: Tensor | None = None,
    *,
    return_clusters: bool,
    **options: Unpack[ClusteringOptions],
) -> Tensor | Clusters: ...
def cluster_embeddings(
    embeddings: Tensor,  # [B, D, *spatial]
    foreground: Tensor | None = None,  # [B, *spatial]
    *,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    min_size: int = 20,
    sample: int = 4096,
    max_clusters: int = 1024,
    fragment: int = 0,
    connected: bool = False,
    modes: Tensor | None = None,  # [B, G, D]
    return_clusters: bool = False,
) -> Tensor | Clusters:
    r"""Instance ids from the embeddings of a network trained with this loss.

    Density peaks on a sample of each image's pixels: the post-processing that De Brabandere,
    Neven, Van Gool, arXiv 1708.02551, leave open. No radius is chosen: all follow from the
    margins of the loss, v = ``delta_var`` and d = ``delta_dist``. Pixels nearer than 2.02 v may
    be of one instance, modes nearer than 1.98 (d - v) of one, and a pixel belongs to its nearest
    mode if that is nearer than d. Where L_var = L_dist = 0 (norm 2), every instance has at least
    ``min_size`` pixels and there are at most ``sample / 2`` and ``max_clusters`` of them, the
    result is the true partition, whatever the order of the pixels (``fragment`` and ``connected``
    being off).

    Embeddings are rounded to float32 first. The result is the same, bit by bit, for any number
    of threads. **Nothing is differentiable**: embeddings are detached.

    **Without** ``foreground`` **every pixel is clustered.** A network trained with
    ``ignore_label=0`` leaves the background's embedding unconstrained: give it the foreground.

    Args:
        embeddings: ``[B, D, *spatial]`` with one or more spatial axes; float32, float64, float16
            or bfloat16. Contiguous and channels-last tensors, and slices of them along batch or
            channel, are read in place; other strides cost one copy.
        foreground: ``[B, *spatial]``, bool; or the class of each pixel, 0 for background: int8,
            int16, int32, int64, uint8 or uint16. Pixels of different classes are never of one
            instance. None: all pixels, of one class.
        delta_var: that of the loss, > 0.
        delta_dist: that of the loss, at least ``2.02 * delta_var``.
        min_size: pixels that an instance has at least, >= 1.
        sample: points of a round at most, 1 to 65536; time grows with its square where nothing
            is clustered, quality falls below 50 points an instance.
        max_clusters: the most instances of an image. Beyond it the heaviest stay, and
            ``truncated`` says so.
        fragment: components (by shared faces: 4 neighbours in 2-D, 6 in 3-D) of one instance, or
            of unassigned foreground, below so many pixels join the instance with which they share
            the longest border. Classes play no role in it. 0: off.
        connected: every component of at least ``min_size`` pixels is an instance of its own,
            smaller ones are dropped. Right for networks trained on crops and run on whole images,
            wrong where instances are cut in two by others.
        modes: ``[B, G, D]``, of any floating dtype: modes known before, as of the frame before.
            They come first, are not moved, and need ``min_size`` pixels like others; with classes
            each is of that of the pixel nearest to it. A row that is not finite is absent.
        return_clusters: return :class:`Clusters` instead of the ids alone.

    Returns:
        ``[B, *spatial]`` int32: ids 1 to K in the order of each instance's first pixel; 0 for
        background, pixels of no instance, and pixels that are not finite.

    Raises:
        TypeError: a dtype, or an option of the wrong kind.
        ValueError: shapes, devices, values out of range.

    Example:
        >>> import torch
        >>> from discloss_cuda import cluster_embeddings
        >>> embeddings = torch.tensor([[[5.0, 0.1, 5.2, 0.0, 9.0]]])  # [1, 1, 5]
        >>> cluster_embeddings(embeddings, min_size=2)
        tensor([[1, 2, 1, 2, 0]], dtype=torch.int32)
    """
    numbers = ClusterNumbers(
        delta_var, delta_dist, min_size, sample, max_clusters, fragment, connected
    )
    clusters = _cluster(embeddings, None, foreground, modes, numbers.checked())
    return clusters if return_clusters else clusters.ids


@overload
def cluster_embeddings_packed(
    embeddings: Tensor,
    offsets: Tensor | None = None,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[False] = False,
    **options: Unpack[PackedBatchClusteringOptions],
) -> Tensor: ...
@overload
def cluster_embeddings_packed(
    embeddings: Tensor,
    offsets: Tensor | None = None,
    foreground: Tensor | None = None,
    *,
    return_clusters: Literal[True],
    **options: Unpack[PackedBatchClusteringOptions],
) -> Clusters: ...
@overload
def cluster_embeddings_packed(
    embeddings: Tensor,
    offsets: Tensor | None = None,
    foreground: Tensor | None = None,
    *,
    return_clusters: bool,
    **options: Unpack[PackedBatchClusteringOptions],
) -> Tensor | Clusters: ...
def cluster_embeddings_packed(
    embeddings: Tensor,  # [N_total, D]
    offsets: Tensor | None = None,  # [B + 1]
    foreground: Tensor | None = None,  # [N_total]
    *,
    batch: Tensor | None = None,  # [N_total]
    batch_size: int | None = None,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    min_size: int = 20,
    sample: int = 4096,
    max_clusters: int = 1024,
    modes: Tensor | None = None,  # [B, G, D]
    return_clusters: bool = False,
) -> Tensor | Clusters:
    """:func:`cluster_embeddings` of point clouds of different sizes, one behind the other.

    Cloud b is the points ``offsets[b]:offsets[b + 1]``, or those with ``batch == b``. A cloud may
    be empty. Points have no grid, so ``fragment`` and ``connected`` are not there.

    Args:
        embeddings: ``[N_total, D]``; float32, float64, float16 or bfloat16.
        offsets: ``[B + 1]`` int64, ascending from 0 to N_total. Exactly one of ``offsets`` and
            ``batch`` is given.
        foreground: ``[N_total]``, bool or classes.
        batch: ``[N_total]`` int64, ascending index of each point's cloud.
        batch_size: B, with ``batch``. None: ``batch[-1] + 1``.

    The other arguments, the result (ids ``[N_total]``) and the errors are those of
    :func:`cluster_embeddings`.

    Example:
        >>> import torch
        >>> from discloss_cuda import cluster_embeddings_packed
        >>> embeddings = torch.tensor([[0.0], [0.1], [5.0], [5.2]])  # [4, 1]
        >>> offsets = torch.tensor([0, 2, 4])  # two clouds
        >>> cluster_embeddings_packed(embeddings, offsets, min_size=2)
        tensor([1, 1, 1, 1], dtype=torch.int32)
    """
    numbers = ClusterNumbers(delta_var, delta_dist, min_size, sample, max_clusters).checked()
    _check_tensor("embeddings", embeddings)
    bounds = _offsets(embeddings, offsets, batch, batch_size)
    clusters = _cluster(embeddings, bounds, foreground, modes, numbers)
    return clusters if return_clusters else clusters.ids


def _cluster(
    embeddings: Tensor,
    offsets: Tensor | None,
    foreground: Tensor | None,
    modes: Tensor | None,
    numbers: ClusterNumbers,
) -> Clusters:
    _check_tensor("embeddings", embeddings)
    if foreground is not None:
        _check_tensor("foreground", foreground)
    if modes is not None:
        _check_tensor("modes", modes)
        modes = modes.detach()
    _check_backend(embeddings)
    op = _clustering_ops.current().cluster
    return Clusters(*op(embeddings.detach(), offsets, foreground, modes, *numbers))


def _offsets(
    embeddings: Tensor, offsets: Tensor | None, batch: Tensor | None, batch_size: int | None
) -> Tensor:
    """The offsets of a packed batch, however it was described."""
    if (offsets is None) == (batch is None):
        given = "both" if batch is not None else "neither"
        raise ValueError(f"offsets, batch: expected exactly one of them, got {given}")
    if offsets is not None:
        if batch_size is not None:
            raise ValueError(f"batch_size: expected only with batch, got {batch_size} with offsets")
        _check_tensor("offsets", offsets)
        return offsets
    assert batch is not None
    _check_tensor("batch", batch)
    if batch.shape != embeddings.shape[:1]:
        raise ValueError(
            f"batch: expected shape [N_total] = {list(embeddings.shape[:1])}, "
            f"got {list(batch.shape)}"
        )
    if batch_size is None:
        batch_size = int(batch[-1]) + 1 if batch.numel() else 0
    size = whole("batch_size", batch_size, 0, 2**31 - 1)
    bounds: Tensor = _ops.current().batch_offsets(batch, size)
    return bounds


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {describe(value)}")


def _check_backend(embeddings: Tensor) -> None:
    supported = _clustering_ops.current().device_types
    if embeddings.device.type not in (*supported, "meta"):
        raise ValueError(
            f"embeddings: expected a tensor on {' or '.join(supported)}, the backends of the "
            f"clustering in this build of discloss_cuda, got one on {embeddings.device}"
        )


# What a call returns, by ``return_clusters``; only type checkers ask.
Result = TypeVar("Result", bound=Tensor | Clusters, default=Tensor)


class EmbeddingClustering(nn.Module, Generic[Result]):
    """:func:`discloss_cuda.cluster_embeddings` with its keywords fixed at construction.

    Has no parameters and no buffers. The arguments, result and errors are those of the function;
    wrong options raise at construction.

    Shape:
        - embeddings: ``[B, D, *spatial]``
        - foreground: ``[B, *spatial]``
        - modes: ``[B, G, D]``
        - output: ``[B, *spatial]`` int32, or :class:`Clusters` with ``return_clusters=True``

    Example:
        >>> import torch
        >>> from discloss_cuda import EmbeddingClustering
        >>> clustering = EmbeddingClustering(min_size=2)
        >>> clustering(torch.tensor([[[5.0, 0.1, 5.2, 0.0, 9.0]]]))
        tensor([[1, 2, 1, 2, 0]], dtype=torch.int32)
    """

    @overload
    def __init__(
        self: EmbeddingClustering[Tensor],
        *,
        return_clusters: Literal[False] = False,
        **options: Unpack[ModuleClusteringOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: EmbeddingClustering[Clusters],
        *,
        return_clusters: Literal[True],
        **options: Unpack[ModuleClusteringOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: EmbeddingClustering[Tensor | Clusters],
        *,
        return_clusters: bool,
        **options: Unpack[ModuleClusteringOptions],
    ) -> None: ...
    def __init__(
        self,
        *,
        delta_var: float = 0.5,
        delta_dist: float = 1.5,
        min_size: int = 20,
        sample: int = 4096,
        max_clusters: int = 1024,
        fragment: int = 0,
        connected: bool = False,
        return_clusters: bool = False,
    ) -> None:
        super().__init__()
        numbers = ClusterNumbers(
            delta_var, delta_dist, min_size, sample, max_clusters, fragment, connected
        )
        self.numbers = numbers.checked()
        self.return_clusters = return_clusters

    if TYPE_CHECKING:

        def __call__(
            self,
            embeddings: Tensor,
            foreground: Tensor | None = None,
            modes: Tensor | None = None,
        ) -> Result:
            """As ``forward``; the one of ``nn.Module`` is typed to return anything."""

    def forward(
        self, embeddings: Tensor, foreground: Tensor | None = None, modes: Tensor | None = None
    ) -> Result:
        """The instances of a batch; see :func:`discloss_cuda.cluster_embeddings`."""
        clusters = _cluster(embeddings, None, foreground, modes, self.numbers)
        return clusters if self.return_clusters else clusters.ids  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """All keywords, as the constructor takes them."""
        keywords = {**self.numbers._asdict(), "return_clusters": self.return_clusters}
        return ", ".join(f"{name}={value!r}" for name, value in keywords.items())
