"""The clustering once more, in NumPy and plain Python: written from the definition, not from the
package, point by point where the package's reference works on whole tensors."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

F = np.float32


@dataclass
class Mode:
    """A mode that was kept."""

    point: np.ndarray
    of_class: int
    source: int = -1


@dataclass
class Result:
    """What is found in one image; ``modes[k - 1]`` is that of id k."""

    ids: np.ndarray
    modes: list[Mode] = field(default_factory=list)
    truncated: bool = False


def squares(points: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Squared distances of ``q [D]`` from ``points [n, D]``."""
    s = np.zeros(len(points), F)
    for c in range(points.shape[1]):
        t = (points[:, c] - q[c]).astype(F)
        s = (s + (t * t).astype(F)).astype(F)
    return s


def cluster(
    embedding: np.ndarray,  # [D, *spatial]
    foreground: np.ndarray | None = None,  # [*spatial]
    *,
    delta_var: float = 0.5,
    delta_dist: float = 1.5,
    min_size: int = 20,
    sample: int = 4096,
    max_clusters: int = 1024,
    fragment: int = 0,
    connected: bool = False,
    modes: np.ndarray | None = None,  # [G, D]
) -> Result:
    """Instances of one image."""
    with np.errstate(all="ignore"):
        x = np.ascontiguousarray(embedding.reshape(len(embedding), -1).T.astype(F))
        spatial = embedding.shape[1:]
        of_class = np.ones(len(x), np.int64) if foreground is None else foreground.ravel()
        of_class = np.where(np.isfinite(x).all(1), of_class.astype(np.int64), 0)
        search = Search(x, of_class, delta_var, delta_dist, min_size, sample, max_clusters)
        if modes is not None:
            search.given(modes.astype(F))
        search.run()
    label = search.label
    for _ in range(2 if fragment else 0):
        label = absorb(label, of_class != 0, spatial, fragment)
    return number(label, search, spatial, connected)


class Search:
    """The rounds of one image."""

    def __init__(
        self,
        x: np.ndarray,
        of_class: np.ndarray,
        v: float,
        d: float,
        min_size: int,
        sample: int,
        limit: int,
    ) -> None:
        self.x, self.of_class = x, of_class
        self.h2, self.slope = F((1.2 * v) ** 2), F(4096 / (1.2 * v) ** 2)
        self.near2, self.far2, self.d2 = F((2.02 * v) ** 2), F((1.98 * (d - v)) ** 2), F(d * d)
        self.min_size, self.sample, self.limit = min_size, sample, limit
        self.label = np.zeros(len(x), np.int64)
        self.modes: list[Mode] = []
        self.truncated = False

    def left(self) -> np.ndarray:
        return np.flatnonzero((self.of_class != 0) & (self.label == 0))

    def given(self, rows: np.ndarray) -> None:
        left = self.left()
        if len(left) == 0:
            return
        new = []
        for g, row in enumerate(rows):
            if np.isfinite(row).all():
                s = squares(self.x[left], row)
                new.append(Mode(row, int(self.of_class[left[np.flatnonzero(s == s.min())[0]]]), g))
        if len(new) > self.limit:
            self.truncated = True
        self.settle(left, new[: self.limit])

    def run(self) -> None:
        first = None
        while len(left := self.left()) >= self.min_size:
            first = first or len(left)
            some = min(self.sample, max(512, 4 * self.sample * len(left) // first))
            sizes = [some] if some == self.sample else [some, self.sample]
            for size in sizes:
                step = math.ceil(len(left) / size)
                if self.settle(left, self.thinned(*self.trees(left[::step]), step)):
                    break
                if step == 1:
                    return
            else:
                return

    def trees(self, at: np.ndarray) -> tuple[list[Mode], list[int]]:
        """Candidates in the order of their first members, and how many points each has."""
        p, c, n = self.x[at], self.of_class[at], len(at)
        density = []
        for i in range(n):
            s = squares(p, p[i])
            inside = s[(s < self.h2) & (c == c[i])]
            density.append(
                int(((self.h2 - inside).astype(F) * self.slope).astype(F).astype(int).sum())
            )
        rank = sorted(range(n), key=lambda i: (-density[i], i))  # the densest first
        place = np.empty(n, int)
        place[rank] = np.arange(n)
        parent = list(range(n))
        for i in range(n):
            s = squares(p, p[i])
            candidates = np.flatnonzero((place < place[i]) & (c == c[i]) & (s < self.near2))
            if len(candidates):
                parent[i] = int(candidates[np.lexsort((candidates, s[candidates]))[0]])
        tree = [0] * n
        for i in rank:  # a parent comes before its children
            tree[i] = i if parent[i] == i else tree[parent[i]]
        members: dict[int, list[int]] = {}
        for i in range(n):
            members.setdefault(tree[i], []).append(i)
        e = math.frexp(float(np.abs(p).max()))[1]
        fixed = np.rint(p.astype(np.float64) * 2.0 ** (40 - e)).astype(np.int64)
        modes = []
        for of_tree in members.values():
            total = [sum(int(value) for value in fixed[of_tree, k]) for k in range(p.shape[1])]
            mean = [float(t) / len(of_tree) * 2.0 ** (e - 40) for t in total]
            modes.append(Mode(np.array(mean).astype(F), int(c[of_tree[0]])))
        return modes, [len(of_tree) for of_tree in members.values()]

    def thinned(self, modes: list[Mode], weight: list[int], step: int) -> list[Mode]:
        least = max(2, self.min_size // step // 2) if step > 1 else max(1, self.min_size // 2)
        kept: list[Mode] = []
        for k in sorted(range(len(modes)), key=lambda k: (-weight[k], k)):
            mode = modes[k]

            def closer(other: Mode, radius2: Any, mode: Mode = mode) -> bool:
                apart = squares(other.point[None], mode.point)[0]
                return other.of_class == mode.of_class and bool(apart < radius2)

            if weight[k] < least or any(closer(other, self.near2) for other in kept):
                continue
            if any(closer(other, self.far2) for other in self.modes):
                continue
            if len(self.modes) + len(kept) >= self.limit:
                self.truncated = True
            else:
                kept.append(mode)
        return kept

    def settle(self, left: np.ndarray, new: list[Mode]) -> int:
        """Steps 5 and 6; how many modes stay."""
        support = Counter(
            k for k, s in zip(*self.nearest(left, new), strict=True) if k >= 0 and s < self.near2
        )
        new = [mode for k, mode in enumerate(new) if support[k] >= self.min_size]
        for i, k, s in zip(left, *self.nearest(left, new), strict=True):
            if k >= 0 and s < self.d2:
                self.label[i] = len(self.modes) + 1 + k
        self.modes += new
        return len(new)

    def nearest(self, left: np.ndarray, new: list[Mode]) -> tuple[np.ndarray, np.ndarray]:
        best, at = np.full(len(left), F(np.inf)), np.full(len(left), -1)
        for k, mode in enumerate(new):
            s = squares(self.x[left], mode.point)
            closer = (s < best) & (self.of_class[left] == mode.of_class)
            best[closer], at[closer] = s[closer], k
        return at, best


def components(value: np.ndarray, inside: np.ndarray, spatial: tuple[int, ...]) -> list[list[int]]:
    """Pixels that are connected by faces, of one value, in the order of their first pixels."""
    seen, found = ~inside, []
    for start in range(len(value)):
        if seen[start]:
            continue
        seen[start] = True
        pixels, waiting = [], deque([start])
        while waiting:
            i = waiting.popleft()
            pixels.append(i)
            for j in neighbours(i, spatial):
                if not seen[j] and value[j] == value[i]:
                    seen[j] = True
                    waiting.append(j)
        found.append(pixels)
    return found


def neighbours(i: int, spatial: tuple[int, ...]) -> list[int]:
    at, around = np.unravel_index(i, spatial), []
    for axis in range(len(spatial)):
        for move in (-1, 1):
            there = list(at)
            there[axis] += move
            if 0 <= there[axis] < spatial[axis]:
                around.append(int(np.ravel_multi_index(tuple(there), spatial)))
    return around


def absorb(
    label: np.ndarray, inside: np.ndarray, spatial: tuple[int, ...], fragment: int
) -> np.ndarray:
    """Small components take the label of the large one with the longest common border."""
    found = components(label, inside, spatial)
    owner = {i: c for c, pixels in enumerate(found) for i in pixels}
    result = label.copy()
    for c, pixels in enumerate(found):
        if len(pixels) >= fragment:
            continue
        border: Counter[int] = Counter()
        for i in pixels:
            for j in neighbours(i, spatial):
                other = owner.get(j, c)
                if other != c and len(found[other]) >= fragment and label[j] > 0:
                    border[other] += 1
        if border:
            longest = max(border.values())
            result[pixels] = min(label[found[o][0]] for o, n in border.items() if n == longest)
    return result


def number(label: np.ndarray, search: Search, spatial: tuple[int, ...], connected: bool) -> Result:
    """Ids in the order of first pixels."""
    truncated = search.truncated
    if connected:
        parts = [c for c in components(label, label > 0, spatial) if len(c) >= search.min_size]
        parts.sort(key=lambda pixels: (-len(pixels), pixels[0]))
        truncated |= len(parts) > search.limit
        parts = sorted(parts[: search.limit], key=lambda pixels: pixels[0])
    else:
        present = dict.fromkeys(int(k) for k in label if k > 0)
        parts = [list(np.flatnonzero(label == k)) for k in present]
    ids = np.zeros(len(label), np.int32)
    for k, pixels in enumerate(parts):
        ids[pixels] = k + 1
    modes = [search.modes[label[pixels[0]] - 1] for pixels in parts]
    return Result(ids.reshape(spatial), modes, truncated)
