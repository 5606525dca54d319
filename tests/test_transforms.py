"""What PyTorch does to a loss: opcheck, torch.compile, torch.export, torch.func, checkpoints."""

from __future__ import annotations

import concurrent.futures
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.torch_version import TorchVersion

from discloss_cuda import (
    DiscriminativeLoss,
    DiscriminativeLossFunction,
    _ops,
    discriminative_loss,
    discriminative_loss_packed,
    reference,
)

# torch.compile and torch.export use parts of torch that torch itself has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
# What concerns the graph alone need not run on the emulated kernels too.
not_emulated = pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)

NUMBERS = (0.5, 1.5, 1.0, 1.0, 0.001, 2)  # the op's hyper-parameters

# torch 2.11, tracing a second derivative with symbolic shapes, fails an assertion of its own.
SECOND_DERIVATIVE_CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    *(["test_aot_dispatch_dynamic"] if TorchVersion(torch.__version__) >= "2.12" else []),
)


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inductor's cache does not see a changed fake kernel; nothing is taken from it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _inputs(device: torch.device, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64, generator=generator).to(device, dtype)
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator).to(device)
    return x.requires_grad_(), labels.repeat_interleave(2, 1).repeat_interleave(2, 2)


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(function(x), x)
    return gradient


class SeenFunctions(TorchFunctionMode):
    """Within it every function that asks for ``__torch_function__`` is listed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    """A tensor whose ``__torch_function__`` lists what it is given to."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("return_terms", [False, True])
def test_whoever_overrides_functions_sees_the_op(device: torch.device, return_terms: bool) -> None:
    x, labels = _inputs(device)
    op = _ops.current().forward
    options: dict[str, Any] = {"max_instances": 4, "return_terms": return_terms}

    def results(x: Tensor) -> list[Tensor]:
        found = discriminative_loss(x, labels, **options)
        terms = list(found) if return_terms else [found]
        return [*terms, *torch.autograd.grad(sum(terms), x)]

    direct = results(x)
    with SeenFunctions() as mode:
        through_mode = results(x)
    assert op in mode.seen
    Subclass.seen.clear()
    through_subclass = results(x.detach().as_subclass(Subclass).requires_grad_())
    assert op in Subclass.seen
    assert type(through_subclass[0]) is Subclass
    for a, b, c in zip(direct, through_mode, through_subclass, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c.as_subclass(Tensor))


@pytest.mark.parametrize("overriding", ["embeddings", "labels", "offsets", "batch"])
def test_embeddings_alone_may_override_functions(device: torch.device, overriding: str) -> None:
    """Ids and offsets lose their subclass, which no result takes over."""
    tensors = {
        "embeddings": torch.randn(6, 4, device=device),
        "labels": torch.tensor([0, 0, 1, 1, 2, 2], device=device),
        "offsets": torch.tensor([0, 4, 6], device=device),
    }
    expected = discriminative_loss_packed(**tensors, max_instances=2)
    if overriding == "batch":
        del tensors["offsets"]
        tensors["batch"] = torch.tensor([0, 0, 0, 0, 1, 1], device=device)
    tensors[overriding] = tensors[overriding].as_subclass(Subclass)
    Subclass.seen.clear()
    loss = discriminative_loss_packed(**tensors, max_instances=2)
    overrides = overriding == "embeddings"
    assert (_ops.current().forward in Subclass.seen) == overrides
    assert type(loss) is (Subclass if overrides else Tensor)
    assert torch.equal(loss.as_subclass(Tensor), expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(device: torch.device, dtype: torch.dtype, packed: bool) -> None:
    x, labels = _inputs(device, dtype)
    offsets = None
    if packed:
        x = x.detach().flatten(2).transpose(1, 2).reshape(-1, 3).requires_grad_()
        labels = labels.flatten()
        offsets = torch.tensor([0, 40, 40, 120], device=device)
    ops = _ops.current()
    arguments = (x, labels, offsets, 4, NUMBERS, [0])
    torch.library.opcheck(ops.forward, arguments)
    if not packed:
        one = (x[:1].detach().requires_grad_(), labels[:1], *arguments[2:])
        torch.library.opcheck(ops.forward, one, {"squeeze": True})
    results = [result.detach() for result in ops.forward(*arguments)]
    upstream = torch.linspace(1, 2, len(results[0]), device=device, dtype=results[0].dtype)
    torch.library.opcheck(
        ops.backward,
        (upstream.requires_grad_(), None, None, upstream, x, offsets, *results[4:], NUMBERS),
        test_utils=SECOND_DERIVATIVE_CHECKS,
    )
    torch.library.opcheck(ops.count_instances, (labels, offsets, [0]))
    torch.library.opcheck(ops.batch_offsets, (torch.tensor([0, 0, 2], device=device), 4))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("max_instances", [None, 5])
def test_compile_fullgraph(device: torch.device, backend: str, max_instances: int | None) -> None:
    x, labels = _inputs(device)

    def loss(x: Tensor, labels: Tensor = labels) -> Tensor:
        result: Tensor = discriminative_loss(
            2 * x, labels, ignore_label=0, max_instances=max_instances
        )
        return result

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), loss(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(_gradient(compiled, x), _gradient(loss, x), rtol=1e-12, atol=1e-15)
    if max_instances is None:  # another K is no other graph
        with torch.compiler.set_stance("fail_on_recompile"):
            fewer = labels.clamp(max=2)
            torch.testing.assert_close(compiled(x, fewer), loss(x, fewer), rtol=1e-12, atol=0)


def test_compile_reduce_overhead(device: torch.device) -> None:
    """On CUDA as a CUDA graph, which is replayed with other numbers."""
    x, labels = _inputs(device)

    def loss(x: Tensor) -> Tensor:
        return discriminative_loss(2 * x, labels, max_instances=5)

    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    for step in range(4):
        moved = (x.detach() + 0.1 * step).requires_grad_()
        torch.testing.assert_close(_gradient(compiled, moved), _gradient(loss, moved))


def test_compile_dynamic_shapes(device: torch.device) -> None:
    def loss(x: Tensor, labels: Tensor) -> Any:
        return discriminative_loss(x, labels, return_terms=True, reduction="none")

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    x, labels = _inputs(device)
    for size in (10, 8, 5):
        narrow = x.detach()[..., :size].clone().requires_grad_()
        narrow_labels = labels[..., :size].contiguous()
        for ours, expected in zip(
            compiled(narrow, narrow_labels), loss(narrow, narrow_labels), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_compile_packed(device: torch.device) -> None:
    x, labels = _inputs(device)
    points = x.detach().flatten(2).transpose(1, 2).reshape(-1, 3).requires_grad_()
    batch = torch.arange(2, device=device).repeat_interleave(60)

    def loss(points: Tensor) -> Tensor:
        result: Tensor = discriminative_loss_packed(
            points, labels.flatten(), batch=batch, batch_size=2
        )
        return result

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(points), discriminative_loss(x, labels))
    torch.testing.assert_close(_gradient(compiled, points), _gradient(loss, points))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_module_trains(device: torch.device, strict: bool) -> None:
    x, labels = _inputs(device)
    criterion = DiscriminativeLoss(ignore_label=0)
    exported = torch.export.export(criterion, (x.detach(), labels), strict=strict).module()
    expected = _gradient(lambda x: criterion(x, labels), x)
    torch.testing.assert_close(_gradient(lambda x: exported(x, labels), x), expected)


@pytest.mark.parametrize("device_name", ["meta", "fake"])
def test_meta_and_fake_tensors(device_name: str) -> None:
    if device_name == "meta":
        x = torch.empty(2, 3, 6, 10, device="meta", dtype=torch.float16, requires_grad=True)
        loss = discriminative_loss(
            x, torch.empty(2, 6, 10, device="meta", dtype=torch.int32), max_instances=7
        )
        loss.backward()
        gradient = x.grad
    else:
        with torch._subclasses.FakeTensorMode():
            x = torch.empty(2, 3, 6, 10, dtype=torch.float16, requires_grad=True)
            loss = discriminative_loss(x, torch.empty(2, 6, 10, dtype=torch.int32), max_instances=7)
            (gradient,) = torch.autograd.grad(loss, x)
    assert gradient is not None
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert (gradient.shape, gradient.dtype) == (x.shape, torch.float16)


def test_func_grad_vjp_and_hessian(device: torch.device) -> None:
    x, labels = _inputs(device)

    def loss(x: Tensor) -> Tensor:
        result: Tensor = discriminative_loss(x, labels)
        return result

    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), _gradient(loss, x))
    value, pullback = torch.func.vjp(loss, x.detach())
    torch.testing.assert_close(pullback(2 * torch.ones_like(value))[0], 2 * _gradient(loss, x))
    small, small_labels = x.detach()[:, :2, :2, :4], labels[:, :2, :4]
    torch.testing.assert_close(
        torch.func.hessian(lambda x: discriminative_loss(x, small_labels))(small),
        torch.func.hessian(lambda x: reference.discriminative_loss(x, small_labels))(small),
    )


def test_func_grad_under_compile(device: torch.device) -> None:
    x, labels = _inputs(device)

    def loss(x: Tensor) -> Tensor:
        result: Tensor = discriminative_loss(x, labels, max_instances=4)
        return result

    compiled = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.detach()), _gradient(loss, x))


def test_forward_mode(device: torch.device) -> None:
    x, labels = _inputs(device)
    assert torch.autograd.gradcheck(
        lambda x: discriminative_loss(x, labels),
        x,
        check_forward_ad=True,
        check_backward_ad=False,
        fast_mode=True,
    )


def test_a_tangent_is_never_dropped(device: torch.device) -> None:
    """The op, which has no forward-mode derivative, says so instead of returning a constant."""
    x, labels = _inputs(device)
    arguments = (labels, None, 4, NUMBERS, [])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward has no forward-mode derivative"):
            _ops.current().forward(dual, *arguments)
        with pytest.raises(NotImplementedError, match="forward has no forward-mode derivative"):
            _ops.current().terms(1, dual, *arguments, False)


def test_batched_upstream_gradients(device: torch.device) -> None:
    x, labels = _inputs(device)
    assert torch.autograd.gradcheck(
        lambda x: discriminative_loss(x, labels, reduction="none"),
        x,
        check_batched_grad=True,
        fast_mode=True,
    )


def test_a_gradient_penalty_is_differentiated(device: torch.device) -> None:
    x, labels = _inputs(device)

    def penalised(loss_function: Callable[..., Tensor]) -> Tensor:
        loss = loss_function(x, labels)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + 10 * (gradient.norm() - 1) ** 2

    torch.testing.assert_close(
        _gradient(lambda _: penalised(discriminative_loss), x),
        _gradient(lambda _: penalised(reference.discriminative_loss), x),
    )


def test_function_and_op_are_the_same(device: torch.device) -> None:
    x, labels = _inputs(device)
    arguments = (x, labels, None, 4, NUMBERS, [0])
    by_function = DiscriminativeLossFunction.apply(*arguments)
    by_op = _ops.current().forward(*arguments)
    for ours, expected in zip(by_function, by_op, strict=True):
        assert torch.equal(ours, expected)
        assert ours.requires_grad == expected.requires_grad
    (ours,) = torch.autograd.grad(by_function[0].sum(), x)
    (expected,) = torch.autograd.grad(by_op[0].sum(), x)
    assert torch.equal(ours, expected)


@not_emulated
def test_compiled_training_step(device: torch.device) -> None:
    """Network, loss and step as one graph, with a backward that is compiled too."""
    images, labels = _inputs(device, torch.float32)
    criterion = DiscriminativeLoss(ignore_label=0)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3, padding=1).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def loss_of(images: Tensor, model: torch.nn.Module = model) -> Any:
            return criterion(model(images), labels)

        function = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
        for _ in range(3):
            optimizer.zero_grad()
            if compiled:
                compiler = torch.compile(backend="aot_eager", fullgraph=True)
                with torch._dynamo.compiled_autograd._enable(compiler):
                    function(images.detach()).backward()
            else:
                loss_of(images.detach()).backward()
            optimizer.step()
        found.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*found)


@not_emulated
def test_compiled_double_backward_is_refused(device: torch.device) -> None:
    """torch.compile has no second derivatives, of any function, and says so."""
    x, labels = _inputs(device)
    compiled = torch.compile(
        lambda x: discriminative_loss(x, labels), fullgraph=True, backend="aot_eager"
    )
    with torch._functorch.config.patch(donated_buffer=False):
        (gradient,) = torch.autograd.grad(compiled(x), x, create_graph=True)
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            torch.autograd.grad(gradient.square().sum(), x)


@not_emulated
def test_export_with_dynamic_shapes_saved_and_loaded(device: torch.device) -> None:
    x, labels = _inputs(device)
    criterion = DiscriminativeLoss(ignore_label=0)
    auto = torch.export.Dim.AUTO
    dynamic = {"embeddings": {0: auto, 2: auto, 3: auto}, "labels": {0: auto, 1: auto, 2: auto}}
    program = torch.export.export(criterion, (x.detach(), labels), dynamic_shapes=dynamic)
    file = io.BytesIO()
    torch.export.save(program.run_decompositions(), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for images, height, width in ((2, 6, 10), (1, 5, 7)):
        part = x.detach()[:images, :, :height, :width].clone().requires_grad_()
        its_labels = labels[:images, :height, :width].contiguous()
        torch.testing.assert_close(loaded(part, its_labels), criterion(part, its_labels))
        torch.testing.assert_close(
            _gradient(lambda x, y=its_labels: loaded(x, y), part),
            _gradient(lambda x, y=its_labels: criterion(x, y), part),
        )


class _Step(torch.nn.Module):
    """A network with the loss in its forward."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Conv2d(3, 4, 1).to(device, torch.float64)
        self.criterion = DiscriminativeLoss(ignore_label=0, max_instances=3)

    def forward(self, images: Tensor, labels: Tensor) -> Any:
        return self.criterion(self.network(images), labels)


@not_emulated
def test_exported_backward(device: torch.device) -> None:
    """The graph of forward and backward together, as torch.export.experimental makes it."""
    from torch.export.experimental import _export_forward_backward

    x, labels = _inputs(device)
    step = _Step(device)
    program = torch.export.export(step, (x.detach(), labels), strict=True)
    joint = _export_forward_backward(program)
    names = [str(node.target) for node in joint.graph.nodes]
    assert any("backward" in name for name in names)
    parameters = [parameter.detach() for parameter in step.parameters()]
    loss, *gradients = joint.graph_module(*parameters, x.detach(), labels)
    step(x.detach(), labels).backward()
    torch.testing.assert_close(loss, step(x.detach(), labels).detach())
    for ours, parameter in zip(gradients, step.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)


@not_emulated
def test_aot_inductor_package(device: torch.device, tmp_path: Any) -> None:
    """Compiled to a package ahead of time; what runs it must import discloss_cuda."""
    x, labels = _inputs(device, torch.float32)
    criterion = DiscriminativeLoss(ignore_label=0, max_instances=3)
    program = torch.export.export(criterion, (x.detach(), labels))
    path = torch._inductor.aoti_compile_and_package(
        program,
        package_path=f"{tmp_path}/loss.pt2",
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    loaded = torch._inductor.aoti_load_package(path)
    torch.testing.assert_close(loaded(x.detach(), labels), criterion(x.detach(), labels))


@not_emulated
def test_functional_call_and_make_fx(device: torch.device) -> None:
    x, labels = _inputs(device)
    step = _Step(device)
    parameters = {name: value.detach() for name, value in step.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(step, parameters, (x.detach(), labels))

    step(x.detach(), labels).backward()
    expected = {name: value.grad for name, value in step.named_parameters()}
    torch.testing.assert_close(torch.func.grad(loss)(parameters), expected)
    make_fx = torch.fx.experimental.proxy_tensor.make_fx
    torch.testing.assert_close(make_fx(torch.func.grad(loss))(parameters)(parameters), expected)
    leaves = {name: value.requires_grad_() for name, value in parameters.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()))
    torch.testing.assert_close(dict(zip(leaves, found, strict=True)), expected)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_finds_the_op(
    device: torch.device, mode: Literal["real", "fake", "symbolic"]
) -> None:
    x, labels = _inputs(device)

    def loss(x: Tensor, labels: Tensor) -> Any:
        return discriminative_loss(x, labels, max_instances=4)

    traced = torch.fx.experimental.proxy_tensor.make_fx(loss, tracing_mode=mode)(x, labels)
    assert _ops.current().forward in {node.target for node in traced.graph.nodes}
    torch.testing.assert_close(traced(2 * x, labels), loss(2 * x, labels))


def test_checkpoint_and_saved_tensor_hooks(device: torch.device) -> None:
    x, labels = _inputs(device)
    expected = _gradient(lambda x: discriminative_loss(x, labels), x)
    checkpointed = torch.utils.checkpoint.checkpoint(
        discriminative_loss, x, labels, use_reentrant=False
    )
    assert torch.equal(torch.autograd.grad(checkpointed, x)[0], expected)
    with torch.autograd.graph.save_on_cpu():
        loss = discriminative_loss(x, labels)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


@not_emulated
def test_calls_from_several_threads(device: torch.device) -> None:
    x, labels = _inputs(device)
    expected = _gradient(lambda x: discriminative_loss(x, labels), x)

    def gradients(repeats: int) -> list[Tensor]:
        leaf = x.detach().clone().requires_grad_()
        return [_gradient(lambda x: discriminative_loss(x, labels), leaf) for _ in range(repeats)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found in pool.map(gradients, [20] * 8):
            assert all(torch.equal(gradient, expected) for gradient in found)


def test_inference_mode_and_no_grad(device: torch.device) -> None:
    x, labels = _inputs(device)
    expected = discriminative_loss(x, labels)
    with torch.no_grad():
        assert torch.equal(discriminative_loss(x, labels), expected)
    with torch.inference_mode():
        assert torch.equal(discriminative_loss(x, labels), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_takes_embeddings_as_they_are(device: torch.device, dtype: torch.dtype) -> None:
    x, labels = _inputs(device, dtype)
    expected = discriminative_loss(x, labels)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = discriminative_loss(x, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_training_lowers_the_loss(device: torch.device) -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3, padding=1).to(device)
    criterion = DiscriminativeLoss(ignore_label=0)
    twin = copy.deepcopy(model)
    image, labels = _inputs(device, torch.float32)
    image = image.detach()
    for network, loss_function in ((model, criterion), (twin, reference.discriminative_loss)):
        keywords = {} if network is model else {"ignore_label": 0}
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        losses = []
        for _ in range(5):
            loss = loss_function(network(image), labels, **keywords)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
    for ours, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)
