"""Calls of the clustering: errors, PyTorch's transforms, the module."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from support.clustering_cases import trained
from torch import Tensor, nn

from discloss_cuda import (
    Clusters,
    EmbeddingClustering,
    cluster_embeddings,
    cluster_embeddings_packed,
    reference,
)


def op_arguments(embeddings: Tensor, *tensors: Tensor | None) -> tuple[Any, ...]:
    offsets, foreground, modes = tensors
    return (embeddings, offsets, foreground, modes, 0.5, 1.5, 4, 300, 8, 0, False)


# --- errors ---------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 4, 5)
POINTS = torch.zeros(7, 3)
OFFSETS = torch.tensor([0, 3, 7])


@pytest.mark.parametrize(
    ("error", "message", "tensors", "options"),
    [
        (TypeError, "embeddings: expected a tensor, got 1 of type int", (1,), {}),
        (TypeError, "embeddings: expected a tensor of dtype float32", (X.int(),), {}),
        (TypeError, "foreground: expected a tensor, got 'x' of type str", (X, "x"), {}),
        (TypeError, "foreground: expected a tensor of dtype bool, or classes", (X, X[:, 0]), {}),
        (TypeError, "modes: expected a tensor, got", (X,), {"modes": [1.0]}),
        (TypeError, "modes: expected a tensor of a floating", (X,), {"modes": X[..., 0].int()}),
        (TypeError, "min_size: expected an int, got 1.5 of type float", (X,), {"min_size": 1.5}),
        (TypeError, "sample: expected an int, got True", (X,), {"sample": True}),
        (TypeError, "connected: expected a bool, got 1 of type int", (X,), {"connected": 1}),
        (TypeError, "delta_var: expected a number, got a tensor", (X,), {"delta_var": X}),
        (ValueError, r"embeddings: expected shape \[B, D, \*spatial\]", (X[0, 0],), {}),
        (ValueError, "embeddings: expected at least one channel", (X[:, :0],), {}),
        (ValueError, r"foreground: expected shape \[B, \*spatial\] = \[2, 4, 5\]", (X, X > 0), {}),
        (ValueError, r"modes: expected shape \[B, G, D\] = \[2, G, 3\]", (X,), {"modes": X[0]}),
        (ValueError, "foreground: expected the device of emb", (X, X[:, 0].bool().to("meta")), {}),
        (ValueError, "delta_var: expected a number >= 1e-15, got 0", (X,), {"delta_var": 0}),
        (ValueError, "delta_var: expected a finite number", (X,), {"delta_var": float("nan")}),
        (ValueError, "delta_dist: expected a number >= 2.02 delta_var = 1.01, got 1.0", (X,),
         {"delta_dist": 1.0}),
        (ValueError, "delta_dist: expected a number <= 1000000000000000", (X,),
         {"delta_dist": 1e16}),
        (ValueError, "min_size: expected a number from 1 to 2147483647, got 0", (X,),
         {"min_size": 0}),
        (ValueError, "sample: expected a number from 1 to 65536, got 65537", (X,),
         {"sample": 65537}),
        (ValueError, "max_clusters: expected a number from 1", (X,), {"max_clusters": 0}),
        (ValueError, "fragment: expected a number from 0", (X,), {"fragment": -1}),
    ],
)  # fmt: skip
def test_errors(
    error: type[Exception], message: str, tensors: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        cluster_embeddings(*tensors, **options)


@pytest.mark.parametrize(
    ("error", "message", "tensors", "options"),
    [
        (ValueError, "offsets, batch: expected exactly one of them, got neither", (POINTS,), {}),
        (ValueError, "batch_size: expected only with batch", (POINTS, OFFSETS), {"batch_size": 2}),
        (ValueError, r"batch: expected shape \[N_total\] = \[7\]", (POINTS,), {"batch": OFFSETS}),
        (TypeError, "offsets: expected a tensor of dtype int64", (POINTS, OFFSETS.int()), {}),
        (ValueError, r"offsets: expected offsets\[B\] = N_total = 7", (POINTS, OFFSETS[:2]), {}),
        (ValueError, r"embeddings: expected shape \[N_total, D\]", (X, OFFSETS), {}),
        (ValueError, r"foreground: expected shape \[N_total\] = \[7\]",
         (POINTS, OFFSETS, OFFSETS), {}),
    ],
)  # fmt: skip
def test_errors_of_clouds(
    error: type[Exception], message: str, tensors: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        cluster_embeddings_packed(*tensors, **options)


def test_the_op_checks_what_python_did_not() -> None:
    op = torch.ops.discloss_cuda.cluster
    arguments = op_arguments(POINTS, OFFSETS, None, None)
    with pytest.raises(ValueError, match=r"^fragment, connected: expected 0 and False with off"):
        op(*arguments[:9], 3, False)
    wrong_numbers = [
        (4, 0.0, "delta_var"),
        (5, 1.0, "delta_dist"),
        (6, 0, "min_size"),
        (7, 0, "sample"),
        (8, 0, "max_clusters"),
        (9, -1, "fragment"),
    ]
    for position, value, name in wrong_numbers:
        wrong = [*op_arguments(X, None, None, None)]
        wrong[position] = value
        with pytest.raises(ValueError, match=f"^{name}"):
            op(*wrong)


# --- transforms -----------------------------------------------------------------------------------


def test_opcheck() -> None:
    x, labels = trained((9, 11), 3, 4, images=2)
    modes = x[:, :, 3, :2].transpose(1, 2).contiguous()
    points, offsets = x[0].flatten(1).T.contiguous(), torch.tensor([0, 40, 99])
    for arguments in (
        op_arguments(x, None, labels > 0, modes),
        op_arguments(x.double(), None, labels, None),
        op_arguments(points.half(), offsets, None, None),
    ):
        torch.library.opcheck(torch.ops.discloss_cuda.cluster.default, arguments)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


class Inference(nn.Module):
    """From an image to instances."""

    def __init__(self, *, return_clusters: bool = False) -> None:
        super().__init__()
        self.network = network()
        self.clustering = EmbeddingClustering(
            min_size=3, fragment=4, return_clusters=return_clusters
        )

    def forward(self, image: Tensor) -> Tensor | Clusters:
        return self.clustering(20 * self.network(image), image[:, 0] > -1)


def test_network_and_clustering_are_one_graph() -> None:
    image = torch.randn(2, 1, 12, 13, generator=torch.Generator().manual_seed(0))
    for return_clusters in (False, True):
        model = Inference(return_clusters=return_clusters).eval()
        with torch.no_grad():
            expected = model(image)
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(image), expected, rtol=0, atol=0)
            batch = torch.export.Dim("batch", min=1, max=8)
            exported = torch.export.export(model, (image,), dynamic_shapes=({0: batch},))
            names = [str(node.target) for node in exported.graph.nodes]
            assert sum("discloss_cuda.cluster" in name for name in names) == 1
            larger = torch.cat([image, image[:1]])
            for inputs in (image, larger):
                torch.testing.assert_close(
                    tuple(exported.module()(inputs)) if return_clusters
                    else exported.module()(inputs),
                    tuple(model(inputs)) if return_clusters else model(inputs),
                    rtol=0, atol=0,
                )  # fmt: skip


def test_embeddings_are_detached() -> None:
    x, labels = trained((9, 11), 3, 4)
    clusters = cluster_embeddings(
        x.requires_grad_(), labels > 0, modes=x[:, :, 3, :2].transpose(1, 2), return_clusters=True
    )
    assert not any(result.requires_grad for result in clusters)


def test_vmap() -> None:
    x, labels = trained((9, 11), 3, 4, images=6)
    x, foreground = x.unflatten(0, (3, 2)), (labels > 0).unflatten(0, (3, 2))
    calls = [cluster_embeddings(x[v], foreground[v], min_size=4) for v in range(3)]
    mapped = torch.vmap(lambda e, f: cluster_embeddings(e, f, min_size=4))(x, foreground)
    assert torch.equal(mapped, torch.stack(calls))
    moved = torch.vmap(lambda e: cluster_embeddings(e, foreground[0], min_size=4), in_dims=2)(
        x.movedim(0, 2)
    )
    assert torch.equal(moved[0], calls[0])
    points, offsets = x[:, 0].flatten(2).transpose(1, 2), torch.tensor([0, 40, 99])
    packed = torch.vmap(lambda e: cluster_embeddings_packed(e, offsets, min_size=4))(points)
    expected = [cluster_embeddings_packed(points[v], offsets, min_size=4) for v in range(3)]
    assert torch.equal(packed, torch.stack(expected))


def test_shapes_without_values() -> None:
    x = torch.empty(2, 3, 4, 5, device="meta")
    clusters = cluster_embeddings(x, return_clusters=True, max_clusters=7)
    expected = cluster_embeddings(torch.zeros(2, 3, 4, 5), return_clusters=True, max_clusters=7)
    for ours, theirs in zip(clusters, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype


# --- module, signatures ---------------------------------------------------------------------------


def test_module_is_the_function_with_its_keywords_fixed() -> None:
    x, labels = trained((9, 11), 3, 4)
    options = {"delta_var": 0.4, "min_size": 4, "max_clusters": 9, "fragment": 3}
    module = EmbeddingClustering(**options, return_clusters=True)
    expected = cluster_embeddings(x, labels > 0, return_clusters=True, **options)
    for ours, theirs in zip(module(x, labels > 0), expected, strict=True):
        assert torch.equal(ours, theirs)
    modes = x[:, :, 3, :2].transpose(1, 2)
    assert torch.equal(
        EmbeddingClustering(**options)(x, None, modes),
        cluster_embeddings(x, modes=modes, **options),
    )
    assert repr(module) == (
        "EmbeddingClustering(delta_var=0.4, delta_dist=1.5, min_size=4, sample=4096, "
        "max_clusters=9, fragment=3, connected=False, return_clusters=True)"
    )
    assert not list(module.state_dict())
    with pytest.raises(ValueError, match=r"^min_size"):
        EmbeddingClustering(min_size=0)


def test_reference_is_called_alike() -> None:
    def keywords(function: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    assert keywords(cluster_embeddings) == keywords(reference.cluster_embeddings)
    of_module = set(keywords(EmbeddingClustering))
    assert set(keywords(cluster_embeddings)) - of_module == {"embeddings", "foreground", "modes"}
