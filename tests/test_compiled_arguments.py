"""Arguments in a compiled graph: sizes and numbers that it does not know, NumPy, subclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from discloss_cuda import DiscriminativeLoss, discriminative_loss, discriminative_loss_packed

# torch.compile and torch.export use parts of torch that torch itself has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
# What concerns the graph alone need not run on the emulated kernels too.
not_emulated = pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inductor's cache does not see a changed fake kernel; nothing is taken from it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def problem(device: torch.device) -> tuple[Tensor, Tensor]:
    """``[2, 3, 8, 9]`` float64 embeddings that require a gradient, and labels with ids 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (2, 8, 9), generator=generator)
    return x.to(device).requires_grad_(), labels.to(device)


class Graphs:
    """A backend that counts what it compiles."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: Any, inputs: Any) -> Any:
        self.count += 1
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)


def assert_same(found: Tensor, expected: Tensor, x: Tensor) -> None:
    """Value and gradient."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    (of_found,) = torch.autograd.grad(found, x)
    (of_expected,) = torch.autograd.grad(expected, x, retain_graph=True)
    torch.testing.assert_close(of_found, of_expected, rtol=1e-12, atol=1e-15)


# --- numbers that change --------------------------------------------------------------------------


@not_emulated
@pytest.mark.parametrize("as_module", [False, True], ids=["function", "module"])
@pytest.mark.parametrize("name", ["delta_var", "delta_dist", "alpha", "beta", "gamma"])
def test_a_schedule_needs_two_graphs(
    problem: tuple[Tensor, Tensor], name: str, as_module: bool
) -> None:
    x, labels = problem
    graphs = Graphs()
    criterion = DiscriminativeLoss()

    def function(x: Tensor, labels: Tensor, value: float) -> Tensor:
        options: dict[str, Any] = {name: value}
        return discriminative_loss(x, labels, **options)

    called: Any = criterion if as_module else function
    compiled = torch.compile(called, fullgraph=True, backend=graphs)
    for step in range(12):
        value = 0.1 * step
        setattr(criterion, name, value)
        found = compiled(x, labels) if as_module else compiled(x, labels, value)
        assert_same(found, function(x, labels, value), x)
    assert graphs.count <= 2


@not_emulated
def test_a_schedule_in_one_graph_of_inductor(problem: tuple[Tensor, Tensor]) -> None:
    x, labels = problem

    def function(x: Tensor, value: float) -> Tensor:
        return discriminative_loss(
            2 * x, labels, beta=value, delta_var=1 - value, max_instances=4, return_terms=True
        ).loss

    compiled = torch.compile(function, fullgraph=True)
    for value in (0.25, 0.5):
        assert_same(compiled(x, value), function(x, value), x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for value in (0.75, 0.875):
            assert_same(compiled(x, value), function(x, value), x)


@not_emulated
def test_a_wrong_number_of_a_schedule_is_an_error(problem: tuple[Tensor, Tensor]) -> None:
    x, labels = problem

    def function(x: Tensor, value: float) -> Tensor:
        return discriminative_loss(x, labels, delta_var=value, max_instances=4)

    compiled = torch.compile(function, backend="aot_eager")
    for value in (0.25, 0.5, 0.75):
        compiled(x, value)
    for wrong in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^delta_var: expected a "):
            compiled(x, wrong)


@not_emulated
def test_a_known_number_stays_in_the_graph(problem: tuple[Tensor, Tensor]) -> None:
    """An op that reads its numbers from a tensor cannot be captured in a CUDA graph."""
    x, labels = problem
    seen: list[Any] = []

    def backend(module: Any, inputs: Any) -> Any:
        def inner(module: Any, inputs: Any) -> Any:
            seen.extend(node.target for node in module.graph.nodes)
            return module.forward

        from torch._dynamo.backends.common import aot_autograd

        return aot_autograd(fw_compiler=inner)(module, inputs)

    def function(x: Tensor, value: float) -> Tensor:
        return discriminative_loss(x, labels, beta=value, max_instances=4)

    compiled = torch.compile(function, backend=backend)
    compiled(x, 0.5)
    assert torch.ops.discloss_cuda.forward.default in seen
    seen.clear()
    compiled(x, 0.25)
    scheduled = torch.ops.discloss_cuda.forward_scheduled.default
    assert scheduled in seen
    assert torch.Tag.cudagraph_unsafe in scheduled.tags


def test_opcheck_of_the_ops_with_numbers_in_tensors(problem: tuple[Tensor, Tensor]) -> None:
    from discloss_cuda import _ops

    ops = _ops.current()
    x, labels = problem
    numbers = torch.tensor([0.5, 1.5, 1.0, 1.0, 0.001, 2.0], dtype=torch.float64)
    ids = torch.tensor([0])
    torch.library.opcheck(ops.forward_scheduled, (x, labels, None, 4, numbers, ids))
    torch.library.opcheck(ops.count_instances_scheduled, (labels, None, ids))
    results = [r.detach() for r in ops.forward_scheduled(x, labels, None, 4, numbers, ids)]
    given = (results[0].clone(), None, None, None, x.detach(), None, *results[4:], numbers)
    torch.library.opcheck(ops.backward_scheduled, given)


# --- NumPy ----------------------------------------------------------------------------------------

OF_NUMPY: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"delta_var": np.float64(0.25)}, {"delta_var": 0.25}),
    ({"delta_dist": np.float32(0.75)}, {"delta_dist": 0.75}),
    ({"alpha": np.int64(2)}, {"alpha": 2}),
    ({"norm": np.int64(1)}, {"norm": 1}),
    ({"ignore_label": np.int64(0)}, {"ignore_label": 0}),
    ({"ignore_label": np.array([0, 2])}, {"ignore_label": [0, 2]}),
    ({"ignore_label": [np.uint8(0), 2]}, {"ignore_label": [0, 2]}),
    ({"max_instances": np.int64(4)}, {"max_instances": 4}),
    ({"max_instances": 4, "ignore_label": np.int16(2)}, {"max_instances": 4, "ignore_label": 2}),
]


@not_emulated
@pytest.mark.parametrize("way", ["function", "argument", "module"])
@pytest.mark.parametrize(
    ("of_numpy", "plain"), OF_NUMPY, ids=[str(sorted(plain.items())) for _, plain in OF_NUMPY]
)
def test_numbers_of_numpy(
    problem: tuple[Tensor, Tensor], of_numpy: dict[str, Any], plain: dict[str, Any], way: str
) -> None:
    x, labels = problem
    expected = discriminative_loss(x, labels, **plain)
    calls: dict[str, Callable[..., Tensor]] = {
        "function": lambda x, labels: discriminative_loss(x, labels, **of_numpy),
        "argument": lambda x, labels, *values: discriminative_loss(
            x, labels, **dict(zip(of_numpy, values, strict=True))
        ),
        "module": DiscriminativeLoss(**of_numpy),
    }
    arguments = of_numpy.values() if way == "argument" else ()
    assert_same(calls[way](x, labels, *arguments), expected, x)
    compiled = torch.compile(calls[way], fullgraph=True, backend="aot_eager")
    assert_same(compiled(x, labels, *arguments), expected, x)


@not_emulated
def test_another_number_of_numpy_is_read_anew(problem: tuple[Tensor, Tensor]) -> None:
    x, labels = problem

    def function(x: Tensor, norm: Any, ids: Any) -> Tensor:
        return discriminative_loss(x, labels, norm=norm, ignore_label=ids, max_instances=4)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for norm, ids in ((1, [0, 1]), (2, [0, 1]), (2, [3, 2])):
        found = compiled(x, np.int64(norm), np.array(ids))
        assert_same(found, function(x, norm, ids), x)
    with pytest.raises(ValueError, match=r"^norm: expected 1 or 2, got 3"):
        compiled(x, np.int64(3), np.array([0, 1]))


# --- sizes ----------------------------------------------------------------------------------------


def points(x: Tensor) -> Tensor:
    """``[B, D, *spatial]`` as ``[N_total, D]``."""
    return x.flatten(2).transpose(1, 2).flatten(0, 1)


class Sized(nn.Module):
    """The loss with a size that the values of a tensor decide."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, labels: Tensor, batch: Tensor) -> Tensor:
        match self.size:
            case "max_instances":
                most: Any = labels.max().item() + 1
                return discriminative_loss(x, labels, max_instances=most)
            case "batch_size":
                return discriminative_loss_packed(points(x), labels.flatten(), batch=batch)
            case _:
                return discriminative_loss_packed(
                    points(x), labels.flatten(), batch=batch, max_instances=5, reduction="none"
                ).sum()


@pytest.fixture
def sized(problem: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Two inputs with other values, and so other sizes."""
    x, labels = problem
    batch = torch.arange(2, device=x.device).repeat_interleave(72)
    return [(x, labels, batch), (x, labels.clamp(max=1), 0 * batch)]


@not_emulated
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("size", ["max_instances", "batch_size", "both"])
def test_a_size_of_a_compiled_graph(sized: Any, size: str, backend: str) -> None:
    module = Sized(size)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert_same(compiled(*sized[0]), module(*sized[0]), sized[0][0])
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(compiled(*sized[1]), module(*sized[1]), sized[1][0])


@not_emulated
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("size", ["max_instances", "batch_size"])
def test_a_size_of_an_exported_graph(sized: Any, size: str, strict: bool) -> None:
    module = Sized(size)
    program = torch.export.export(module, sized[0], strict=strict)
    assert "neg" not in str(program.graph)  # embeddings of no subclass are not copied
    exported = program.module()
    for arguments in sized:
        torch.testing.assert_close(exported(*arguments), module(*arguments), rtol=1e-12, atol=0)


def test_a_size_of_a_compiled_graph_is_checked_when_it_runs() -> None:
    x, labels = torch.zeros(1, 1, 3), torch.tensor([[0, 1, 2]])

    def function(size: Tensor) -> Tensor:
        return discriminative_loss(x, labels, max_instances=int(size))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    compiled(torch.tensor(3))
    with pytest.raises(ValueError, match=r"^max_instances: expected at most 2 instances"):
        compiled(torch.tensor(2))


# --- subclasses -----------------------------------------------------------------------------------


class Annotated(Tensor):
    """A tensor with data of its own, as MONAI's MetaTensor; results take the class over."""


class Overriding(Tensor):
    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return super().__torch_function__(function, types, args, kwargs or {})


@not_emulated
@pytest.mark.parametrize("subclass", [Annotated, Overriding])
@pytest.mark.parametrize("max_instances", [None, 4])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_labels_of_a_subclass(
    problem: tuple[Tensor, Tensor],
    subclass: type[Tensor],
    max_instances: int | None,
    dtype: torch.dtype,
) -> None:
    x, labels = problem

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return discriminative_loss(x, labels, max_instances=max_instances)

    expected = loss(x, labels)
    annotated = labels.to(dtype)[:, None].as_subclass(subclass)
    eager = loss(x, annotated)
    assert type(eager) is Tensor
    assert_same(eager, expected, x)
    assert_same(torch.compile(loss, fullgraph=True)(x, annotated), expected, x)


@not_emulated
@pytest.mark.parametrize("subclass", [Annotated, Overriding])
@pytest.mark.parametrize("max_instances", [None, 4])
def test_embeddings_of_a_subclass(
    problem: tuple[Tensor, Tensor], subclass: type[Tensor], max_instances: int | None
) -> None:
    x, labels = problem

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return discriminative_loss(x, labels, max_instances=max_instances)

    expected = loss(x, labels)
    (gradient,) = torch.autograd.grad(expected, x)
    annotated = x.detach().as_subclass(subclass).requires_grad_()
    for function in (loss, torch.compile(loss, fullgraph=True)):
        found = function(annotated, labels)
        assert found.detach().item() == pytest.approx(expected.item(), rel=1e-12)
        (of_annotated,) = torch.autograd.grad(found, annotated)
        torch.testing.assert_close(of_annotated.as_subclass(Tensor), gradient, rtol=1e-12, atol=0)
