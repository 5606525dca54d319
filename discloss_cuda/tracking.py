"""Instances followed through a video: the clustering of each frame, started from the one before.

A network that is trained with the loss over clips gives an instance the same embedding in every
frame (Hu, Kendall, Cipolla, "Learning a Spatio-Temporal Embedding for Video Instance Segmentation",
arXiv 1912.08969). So a track is a mean embedding, and to follow it is to find the cluster at that
mean in the next frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ._clustering_options import MOST, Clusters, number, whole
from ._messages import describe
from .clustering import EmbeddingClustering

__all__ = ["InstanceTracker", "Tracks"]

FIXED_POINT = 2.0**-36  # of the largest value: sums of 2^27 pixels fit in int64


class Tracks(NamedTuple):
    """The tracks of ``B`` streams, ``M = max_clusters`` rows a stream.

    Rows of tracks come first: those of the last frame in the order of their first pixels, then lost
    ones, the longest lost last. The other rows are 0.
    """

    #: ``[B, M]`` int64: 1, 2, ... in the order in which tracks began; 0 where there is none
    ids: Tensor
    #: ``[B, M, D]`` float32: running mean of the embedding
    means: Tensor
    #: ``[B, M]`` int64: frames since the track was last seen, 0 if in the last frame
    lost: Tensor
    #: ``[B]`` int64: tracks that have begun, which is the last id given
    begun: Tensor


class InstanceTracker:
    """Follows the instances of ``B`` video streams, frame by frame.

    Each frame is clustered by :func:`discloss_cuda.cluster_embeddings` with the means of all tracks
    as given modes. An instance of a given mode continues that track; another one begins a track. A
    track that no instance continues is lost, but stays among the given modes for ``max_lost``
    frames, so it is found again by the same rule.

    A track that is continued moves its mean, with ``w = mean_weight``, to

        (1 - w) mean + w (mean of its pixels in this frame),

    so a frame that is n frames old weighs ``w (1 - w)^n``, and a mean that drifts by e a frame is
    followed at a distance of ``e (1 - w) / w``.

    What ``update`` returns depends on this frame and those before, and is never changed later. It
    is the same, bit by bit, for any number of threads, and for a stream by itself or in a batch.
    Nothing is differentiable: embeddings are detached.

    Args:
        delta_var: that of the loss, > 0.
        delta_dist: that of the loss, at least ``2.02 * delta_var``.
        min_size: pixels that an instance has at least, of which a track needs as many near its
            mean (2.02 ``delta_var``) to be continued.
        sample: as in :func:`discloss_cuda.cluster_embeddings`.
        max_clusters: the most tracks of a stream, lost ones among them. Where there are more, those
            that were lost longest are forgotten first; an instance of the frame never waits for a
            lost track.
        fragment: as in :func:`discloss_cuda.cluster_embeddings`. The option ``connected`` is not
            there: components with one embedding have no identities of their own.
        match_distance: an instance continues a track if the mean of its pixels is nearer than this
            to the track's, else it begins a track. Above 0, at most ``delta_dist``; None:
            ``delta_dist``, within which all pixels of an instance lie anyway.
        mean_weight: weight of a frame in the running mean, above 0, at most 1.
        max_lost: frames in a row that a track may be absent and still be found again, >= 0.

    Raises:
        TypeError: an option of the wrong kind.
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> from discloss_cuda.tracking import InstanceTracker
        >>> tracker = InstanceTracker(min_size=2)
        >>> tracker.update(torch.tensor([[[0.0, 0.1, 5.0, 5.1, 9.0, 9.1]]]))  # [1, 1, 6]
        tensor([[1, 1, 2, 2, 3, 3]])
        >>> tracker.update(torch.tensor([[[9.2, 9.1, 0.0, 0.2, 20.0, 20.1]]]))
        tensor([[3, 3, 1, 1, 4, 4]])
    """

    def __init__(
        self,
        *,
        delta_var: float = 0.5,
        delta_dist: float = 1.5,
        min_size: int = 20,
        sample: int = 4096,
        max_clusters: int = 1024,
        fragment: int = 0,
        match_distance: float | None = None,
        mean_weight: float = 0.5,
        max_lost: int = 10,
    ) -> None:
        self._clustering = EmbeddingClustering(
            delta_var=delta_var,
            delta_dist=delta_dist,
            min_size=min_size,
            sample=sample,
            max_clusters=max_clusters,
            fragment=fragment,
            return_clusters=True,
        )
        numbers = self._clustering.numbers
        limit = numbers.delta_dist if match_distance is None else match_distance
        self.match_distance = _within("match_distance", limit, "delta_dist", numbers.delta_dist)
        self.mean_weight = _within("mean_weight", mean_weight, "1", 1.0)
        self.max_lost = whole("max_lost", max_lost, 0, MOST)
        self._tracks: Tracks | None = None

    @property
    def tracks(self) -> Tracks | None:
        """The tracks after the last frame; None before the first one."""
        return self._tracks

    def update(
        self,
        embeddings: Tensor,  # [B, D, *spatial]
        foreground: Tensor | None = None,  # [B, *spatial]
    ) -> Tensor:
        """The ids of the next frame of each stream.

        Args:
            embeddings: ``[B, D, *spatial]``, of the dtypes of
                :func:`discloss_cuda.cluster_embeddings`. B, D and the device are those of the
                frames before; the spatial axes may change.
            foreground: ``[B, *spatial]``, bool or classes. A track is of no class: in each frame
                it is looked for in that of the pixel nearest to its mean.

        Returns:
            ``[B, *spatial]`` int64: the id of the track of each pixel, consecutive in the order in
            which the tracks of its stream began; 0 for background, pixels of no instance, and
            pixels that are not finite.

        Raises:
            TypeError: a dtype, or no tensor.
            ValueError: shapes, devices; the tracks stay as they were.
        """
        tracks = self._tracks
        given = None
        if tracks is not None:
            _check_streams(embeddings, tracks)
            given = torch.where((tracks.ids > 0)[..., None], tracks.means, torch.nan)
        clusters = self._clustering(embeddings, foreground, given)
        if tracks is None:
            tracks = _no_tracks(clusters.modes)
        of_instance, self._tracks = self._continued(
            tracks, clusters, _instance_means(embeddings, clusters)
        )
        with_background = torch.nn.functional.pad(of_instance, (1, 0))
        ids = with_background.gather(1, clusters.ids.flatten(1).to(torch.int64))
        return ids.reshape(clusters.ids.shape)

    def state_dict(self) -> dict[str, Tensor]:
        """The fields of :class:`Tracks` by name; empty before the first frame.

        That is all that later frames depend on, besides the options.
        """
        return {} if self._tracks is None else self._tracks._asdict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where :meth:`state_dict` was taken; from an empty one, with a first frame.

        Raises:
            TypeError: an entry is no tensor, or of another dtype.
            ValueError: names or shapes are not those of :class:`Tracks`.
        """
        if not state:
            self._tracks = None
            return
        _check_state(state, self._clustering.numbers.max_clusters)
        self._tracks = Tracks(*(state[name].detach().clone() for name in Tracks._fields))

    def _continued(
        self,
        tracks: Tracks,
        clusters: Clusters,
        means: Tensor,  # [B, M, D], of the instances of the frame
    ) -> tuple[Tensor, Tracks]:
        """The track of each instance ``[B, M]``, 0 in empty rows; the tracks after the frame."""
        rows = tracks.ids.shape[1]
        source = clusters.source.to(torch.int64)
        row = source.clamp(min=0)
        known = _rows(tracks.means, row)
        same = (source >= 0) & ((means - known).norm(dim=2) < self.match_distance)
        new = (clusters.counts > 0) & ~same
        began = tracks.begun[:, None] + new.cumsum(1)
        ids = torch.where(same, tracks.ids.gather(1, row), began * new)
        means = torch.where(same[..., None], torch.lerp(known, means, self.mean_weight), means)

        seen = same.new_zeros(len(same), rows + 1)
        seen = seen.scatter(1, source.where(same, rows), True)[:, :rows]
        kept = (tracks.ids > 0) & ~seen & (tracks.lost < self.max_lost)
        every = Tracks(
            torch.cat([ids, tracks.ids * kept], 1),
            torch.cat([means, tracks.means * kept[..., None]], 1),
            torch.cat([torch.zeros_like(ids), (tracks.lost + 1) * kept], 1),
            began[:, -1],
        )
        age = every.lost.where(every.ids > 0, MOST + 1)
        first = age.sort(dim=1, stable=True).indices[:, :rows]
        after = Tracks(
            every.ids.gather(1, first),
            _rows(every.means, first),
            every.lost.gather(1, first),
            every.begun,
        )
        return ids, after


def _instance_means(embeddings: Tensor, clusters: Clusters) -> Tensor:
    """``[B, M, D]`` float32: the mean of the pixels of each instance, 0 in empty rows.

    Sums are of integers, in units of a power of 2 below the largest value of stream and channel:
    their order does not matter.
    """
    index = clusters.ids.flatten(1).to(torch.int64)  # [B, N]
    means = torch.zeros_like(clusters.modes)
    if index.shape[1] == 0:
        return means
    rows, counts = means.shape[1], clusters.counts.clamp(min=1)
    for k, channel in enumerate(embeddings.detach().flatten(2).unbind(1)):
        x = torch.where(index > 0, channel.to(torch.float32), 0.0).to(torch.float64)
        largest = x.abs().amax(1, keepdim=True)
        mantissa, _ = torch.frexp(largest)
        unit = torch.where(largest > 0, largest / mantissa, 1.0) * FIXED_POINT
        fixed = torch.round(x / unit).to(torch.int64)
        sums = fixed.new_zeros(len(fixed), rows + 1).scatter_add_(1, index, fixed)[:, 1:]
        means[..., k] = sums.to(torch.float64) * unit / counts
    return means


def _rows(table: Tensor, row: Tensor) -> Tensor:
    """``[B, M, D], [B, R] -> [B, R, D]``."""
    return table.gather(1, row[..., None].expand(-1, -1, table.shape[2]))


def _no_tracks(modes: Tensor) -> Tracks:
    """As many empty rows as there are modes ``[B, M, D]``."""
    ids = torch.zeros_like(modes[..., 0], dtype=torch.int64)
    return Tracks(ids, torch.zeros_like(modes), ids, ids[:, 0])


def _within(name: str, value: float, bound: str, most: float) -> float:
    found = number(name, value)
    if not 0 < found <= most:
        limit = bound if bound == str(int(most)) else f"{bound} = {most}"
        raise ValueError(f"{name}: expected a number above 0, at most {limit}, got {value}")
    return found


def _check_streams(embeddings: Tensor, tracks: Tracks) -> None:
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"embeddings: expected a tensor, got {describe(embeddings)}")
    streams, _, channels = tracks.means.shape
    if embeddings.shape[:2] != (streams, channels):
        raise ValueError(
            f"embeddings: expected shape [B, D, *spatial] = [{streams}, {channels}, ...], that of "
            f"the tracks, got {list(embeddings.shape)}"
        )
    if embeddings.device != tracks.means.device:
        raise ValueError(
            f"embeddings: expected the device of the tracks, {tracks.means.device}, got "
            f"{embeddings.device}"
        )


def _check_state(state: Mapping[str, Tensor], rows: int) -> None:
    if set(state) != set(Tracks._fields):
        raise ValueError(f"state: expected {list(Tracks._fields)} or nothing, got {list(state)}")
    for name, value in state.items():
        dtype = torch.float32 if name == "means" else torch.int64
        if not isinstance(value, Tensor) or value.dtype != dtype:
            found = value.dtype if isinstance(value, Tensor) else describe(value)
            raise TypeError(f"state[{name!r}]: expected a tensor of {dtype}, got {found}")
    means = state["means"]
    if means.dim() != 3 or means.shape[1] != rows:
        raise ValueError(
            f"state['means']: expected shape [B, M, D] with M = max_clusters = {rows}, got "
            f"{list(means.shape)}"
        )
    streams = means.shape[0]
    shapes = {"ids": [streams, rows], "lost": [streams, rows], "begun": [streams]}
    for name, expected in shapes.items():
        if list(state[name].shape) != expected:
            raise ValueError(
                f"state[{name!r}]: expected shape {expected}, got {list(state[name].shape)}"
            )
