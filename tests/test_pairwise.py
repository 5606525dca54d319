"""The loss over pairs of pixels, beside the discriminative loss that does without them."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import bench_pairs
import numpy as np
import pytest
import torch
from support.cases import clustered_embeddings, voronoi_labels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from discloss_cuda import discriminative_loss
from discloss_cuda.reference import pairwise_loss


def _case(pixels: int = 60, instances: int = 5, dim: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.stack([voronoi_labels((pixels,), instances, seed=seed) for seed in range(2)])
    return clustered_embeddings(labels, dim, dtype=torch.float64), labels


def _pair_by_pair(x: np.ndarray, ids: np.ndarray, delta_var: float, delta_dist: float) -> tuple:
    """One image ``[N, D]``, from its definition."""
    pull = push = 0.0
    names = np.unique(ids)
    for a in names:
        for b in names:
            for i in np.flatnonzero(ids == a):
                for j in np.flatnonzero(ids == b):
                    distance = np.sqrt(((x[i] - x[j]) ** 2).sum())
                    pairs = (ids == a).sum() * (ids == b).sum()
                    if a == b:
                        pull += max(distance - 2 * delta_var, 0) ** 2 / (2 * pairs)
                    else:
                        push += max(2 * delta_dist - distance, 0) ** 2 / pairs
    return pull / len(names), push / (len(names) * (len(names) - 1))


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_terms_are_sums_over_pairs(block: int) -> None:
    x, labels = _case(pixels=40)
    images = [_pair_by_pair(x[b].T.numpy(), labels[b].numpy(), 0.3, 1.2) for b in range(2)]
    expected = np.mean(images, axis=0)
    assert (expected > 0.01).all()
    found = pairwise_loss(
        x, labels, delta_var=0.3, delta_dist=1.2, alpha=0.7, beta=1.9, block=block
    )
    assert found.pull.item() == pytest.approx(expected[0], rel=1e-12)
    assert found.push.item() == pytest.approx(expected[1], rel=1e-12)
    assert found.loss.item() == pytest.approx(0.7 * expected[0] + 1.9 * expected[1], rel=1e-12)


@pytest.mark.parametrize("norm", [1, 2])
def test_with_one_pixel_an_instance_the_push_is_ours(norm: int) -> None:
    x, _ = _case(pixels=50, dim=4)
    labels = torch.randperm(50, generator=torch.Generator().manual_seed(0))[None].expand(2, -1)
    pairs = pairwise_loss(x, labels, norm=norm)
    ours = discriminative_loss(x, labels.contiguous(), norm=norm, return_terms=True)
    assert ours.distance.item() > 0.01
    assert pairs.push.item() == pytest.approx(ours.distance.item(), rel=1e-12)
    assert pairs.pull.item() == ours.variance.item() == 0.0


def test_without_a_margin_the_pull_is_ours() -> None:
    """``1/N sum |x - mu|^2 = 1/(2 N^2) sum sum |x_i - x_j|^2``: value and gradient."""
    x, labels = _case()
    x.requires_grad_()
    pairs = pairwise_loss(x, labels, delta_var=0.0).pull
    ours = discriminative_loss(x, labels, delta_var=0.0, return_terms=True).variance
    assert pairs.item() == pytest.approx(ours.item(), rel=1e-12)
    for_pairs, for_ours = (torch.autograd.grad(pull, x)[0] for pull in (pairs, ours))
    torch.testing.assert_close(for_pairs, for_ours, rtol=1e-10, atol=1e-14)


def test_gradient() -> None:
    x, labels = _case(pixels=7, instances=3)
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: pairwise_loss(x, labels, ignore_label=2, block=3).loss, [x]
    )


def test_ignored_pixels_take_no_part() -> None:
    x, labels = _case()
    kept = labels[0] != 3
    alone = pairwise_loss(x[:1, :, kept], labels[:1, kept])
    x[:, :, ~kept] = torch.nan
    x.requires_grad_()
    terms = pairwise_loss(x[:1], labels[:1], ignore_label=3)
    assert terms.loss.item() == alone.loss.item()
    (grad,) = torch.autograd.grad(terms.loss, x)
    assert torch.equal(grad[:, :, ~kept], torch.zeros_like(grad[:, :, ~kept]))
    assert grad.isfinite().all()


@pytest.mark.parametrize("labels", [[[4, 4, 4]], [[0, 0, 0]], [[]]])
def test_without_a_pair_of_instances_the_push_is_zero(labels: list[list[int]]) -> None:
    ids = torch.tensor(labels, dtype=torch.int64)
    x = torch.zeros(1, 2, ids.shape[1], requires_grad=True)
    terms = pairwise_loss(x, ids, ignore_label=0)
    assert terms.pull.item() == terms.push.item() == 0.0
    (grad,) = torch.autograd.grad(terms.loss, x)
    assert torch.equal(grad, torch.zeros_like(x))


def test_block_of_no_pixel_is_an_error() -> None:
    with pytest.raises(ValueError, match="block: expected a number >= 1, got 0"):
        pairwise_loss(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.int64), block=0)


class _LiveBytes(TorchDispatchMode):
    """The most bytes alive at once of what ops have made; a view is no memory of its own."""

    now = most = 0

    def _freed(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        owned = [
            r
            for r, s in zip(_tensors(result), func._schema.returns, strict=False)
            if not s.alias_info
        ]
        for tensor in owned:
            size = tensor.numel() * tensor.element_size()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(tensor, self._freed, size)
        return result


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [r for r in result or ()]


@pytest.mark.parametrize("pixels", [500, 1000])
def test_memory_is_that_of_a_block_of_pairs(pixels: int) -> None:
    dim, block = 3, 100
    x = torch.randn(1, dim, pixels, requires_grad=True)
    labels = torch.arange(pixels)[None] % 9
    with _LiveBytes() as memory:
        pairwise_loss(x, labels, block=block).loss.backward()
    of_block = 4 * block**2 * dim
    assert of_block < memory.most < 10 * of_block + 40 * 4 * pixels * dim
    assert memory.most < 4 * pixels**2


def _components(x: Tensor, radius: float) -> Tensor:
    """``[N, D]`` -> ``[N]``: the connected parts of the graph of pixels nearer than ``radius``."""
    near = torch.cdist(x, x) < radius
    part = torch.arange(len(x))
    for _ in range(len(x)):
        part = torch.where(near, part[None], len(x)).min(1).values
    return part


@pytest.mark.parametrize("loss", ["pairs", "ours"])
def test_both_reach_the_true_partition(loss: str) -> None:
    """From the same start, where no distance tells the instances apart, both end at 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (1, 60), generator=generator)
    x = torch.randn(1, 3, 60, generator=generator, dtype=torch.float64).requires_grad_()
    start = _components(x[0].detach().t(), 1.0)
    assert len(start.unique()) != 4
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(400):
        if loss == "pairs":
            value = pairwise_loss(x, labels).loss
        else:
            value = discriminative_loss(x, labels, gamma=0.0)
        if value.item() == 0.0:
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() == 0.0
    found = _components(x[0].detach().t(), 1.0)
    same = labels[0][:, None] == labels[0][None]
    assert torch.equal(found[:, None] == found[None], same)


def test_benchmark_over_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    options = ["--pixels", "16", "64", "100000", "--calls", "1", "--limit", "100"]
    assert bench_pairs.main([*options, "--threads", "1", "--json", str(file)]) == 0
    ours, pairs = json.loads(file.read_text())["results"]
    assert [point["pixels"] for point in ours["points"]] == [16, 64, 100_000]
    assert [point["pixels"] for point in pairs["points"]] == [16, 64], "would take too long"
    assert "time ~ N^" in capsys.readouterr().out


def test_exponent_of_a_time() -> None:
    points = [{"pixels": n, "best_ms": 3e-4 * n**2} for n in (10, 20, 40, 90, 200)]
    assert bench_pairs.exponent(points) == pytest.approx(2.0)
    assert bench_pairs.exponent(points[:1]) is None
