"""The loss in training scripts: autocast, GradScaler, gradient penalty, trainers, processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.budget import HALF
from support.ranks import join, spawn
from torch import Tensor, nn

from discloss_cuda import DiscriminativeLoss, discriminative_loss, reference

# torch.compile imports parts of torch that torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """``[B, 3, H, W] -> [B, 4, H, W]``, the same at every call."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 1))
    return layers.to(dtype)


def images_and_labels(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images that show their labels, so that a network can learn; 0 is background."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (batch, 4, 6), generator=generator)
    labels = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)  # [B, 8, 12]
    images = torch.randn(batch, 3, 8, 12, dtype=dtype, generator=generator)
    return images + labels[:, None], labels


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


# --- mixed precision ------------------------------------------------------------------------------


# torch.compile looks at .grad of its inputs, which need not be leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", HALF)
def test_a_network_under_autocast(device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
    """Embeddings go in as autocast leaves them; the loss is float32, gradients have their dtype."""
    model = network().to(device)
    images, labels = (tensor.to(device) for tensor in images_and_labels())
    criterion: Any = DiscriminativeLoss(ignore_label=0, max_instances=3)
    ours = torch.compile(criterion, fullgraph=True, backend="aot_eager") if compiled else criterion
    with torch.autocast(device.type, dtype=dtype):
        embeddings = model(images)
        loss = ours(embeddings, labels)
    assert (embeddings.dtype, loss.dtype) == (dtype, torch.float32)
    embeddings.retain_grad()
    loss.backward()
    assert embeddings.grad.dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model))

    leaf = embeddings.detach().float().requires_grad_()
    expected = reference.discriminative_loss(leaf, labels, ignore_label=0)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(embeddings.grad, gradient.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("scale", [2.0**16, 2.0**20])
def test_grad_scaler(device: torch.device, dtype: torch.dtype, scale: float) -> None:
    """Gradients too small for float16 come through scaled, and unscaled are what they should be."""
    images, labels = (tensor.to(device) for tensor in images_and_labels())
    weight = 2.0**-14
    found = []
    for enabled in (True, False):
        model = network().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=enabled)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            factor = weight if enabled else 1.0
            weights = {"alpha": factor, "beta": factor, "gamma": factor}
            loss = discriminative_loss(model(images), labels, **weights)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found.append(gradients(model))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (scale if enabled else 1.0)
        for parameter, old in zip(model.parameters(), before, strict=True):
            assert not torch.equal(parameter, old)
    tolerance = 1e-3 if dtype == torch.float16 else 1e-6
    for ours, expected in zip(*found, strict=True):
        assert (ours / weight - expected).abs().max() <= tolerance * expected.abs().max()


def test_grad_scaler_sees_an_overflow(device: torch.device) -> None:
    """A step whose gradient overflows is skipped and the scale falls until there is no overflow."""
    x, labels = (tensor.to(device) for tensor in images_and_labels())
    x = nn.Parameter(x)
    optimizer = torch.optim.SGD([x], lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**36, backoff_factor=2.0**-8)
    scales = [scaler.get_scale()]
    while True:
        before = x.detach().clone()
        optimizer.zero_grad()
        loss = discriminative_loss(x.to(torch.float16), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if scales[-1] == scales[-2]:
            break
        assert scales[-1] == scales[-2] / 256
        assert torch.equal(x, before)
    assert 2 < len(scales) < 6
    assert x.isfinite().all()
    assert not torch.equal(x, before)


# --- second order ---------------------------------------------------------------------------------


def test_a_wgan_gradient_penalty(device: torch.device) -> None:
    """``loss + 10 mean_b (|d loss_b / d image_b| - 1)^2``: gradients of the parameters."""
    images, labels = (tensor.to(device) for tensor in images_and_labels(dtype=torch.float64))
    found = []
    for function in (discriminative_loss, reference.discriminative_loss):
        model = network(torch.float64).to(device)
        inputs = images.clone().requires_grad_()
        losses = function(model(inputs), labels, reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        (losses.mean() + 10 * penalty).backward()
        found.append(gradients(model))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    model.zero_grad()
    discriminative_loss(model(images), labels).backward()
    assert not torch.allclose(found[0][0], gradients(model)[0], rtol=0.01)  # it does something


# --- trainers -------------------------------------------------------------------------------------


class TrainingModule(nn.Module):
    """What a trainer such as Lightning's asks of a module: steps, optimizers, values to log."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.criterion = DiscriminativeLoss(ignore_label=0, return_terms=True)
        self.logged: list[dict[str, float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        terms = self.criterion(self.network(images), labels)
        self.logged.append({name: term.item() for name, term in terms._asdict().items()})
        return terms.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def test_a_module_of_a_trainer(device: torch.device) -> None:
    """Trained, checkpointed by its state, restored and trained on, as if never interrupted."""
    images, labels = images_and_labels()
    batch = (images.to(device), labels.to(device)[:, None])  # a mask of one channel, as MONAI's
    module = TrainingModule().to(device)
    optimizer = module.configure_optimizers()

    def train(module: TrainingModule, optimizer: torch.optim.Optimizer, steps: int) -> None:
        module.train()
        for index in range(steps):
            optimizer.zero_grad()
            module.training_step(batch, index).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
            optimizer.step()

    train(module, optimizer, 10)
    assert module.logged[-1]["loss"] < 0.5 * module.logged[0]["loss"]
    assert list(module.logged[0]) == ["loss", "variance", "distance", "regularization"]
    assert all(name.startswith("network.") for name in module.state_dict())

    restored = TrainingModule().to(device)
    restored.load_state_dict(module.state_dict())
    restored_optimizer = restored.configure_optimizers()
    restored_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = copy.deepcopy(module)
    twin_optimizer = twin.configure_optimizers()
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for other, its_optimizer in ((restored, restored_optimizer), (twin, twin_optimizer)):
        other.logged.clear()
        train(other, its_optimizer, 2)
    train(module, optimizer, 2)
    assert restored.logged == twin.logged == module.logged[-2:]


# --- several processes ----------------------------------------------------------------------------

RANKS = 2


def wrapped(way: str) -> nn.Module:
    """The network as it is trained on several ranks."""
    model = network(torch.float64)
    if way == "fsdp":
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
        return torch.distributed.fsdp.fully_shard(model, mesh=mesh)
    parallel = nn.parallel.DistributedDataParallel(model)
    return torch.compile(parallel, backend="aot_eager") if way == "compiled ddp" else parallel


def full_gradients(model: nn.Module) -> list[Tensor]:
    """Gradients of the whole parameters, also where each rank has a shard."""
    return [
        gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        for gradient in gradients(model)
    ]


def several_images() -> tuple[Tensor, Tensor]:
    """Two images a rank; the last rank has nothing but background."""
    images, labels = images_and_labels(2 * RANKS, torch.float64)
    labels[-2:] = 0
    return images, labels


def train_on_rank(rank: int, folder: str, ways: tuple[str, ...]) -> None:
    """The gradients of a step on this rank's images, saved in ``folder``."""
    torch.set_num_threads(1)
    join(rank, torch.distributed.FileStore(f"{folder}/store", RANKS), RANKS)
    images, labels = (tensor.chunk(RANKS)[rank] for tensor in several_images())
    found = {}
    for way in ways:
        model = wrapped(way)
        criterion: Callable[..., Tensor] = DiscriminativeLoss(ignore_label=0, max_instances=3)
        if way == "compiled ddp":
            criterion = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        criterion(model(images), labels).backward()
        found[way] = full_gradients(model)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    """DistributedDataParallel, compiled or not, and fully_shard; a rank may lack instances."""
    ways = ("ddp", "compiled ddp", "fsdp")
    spawn(train_on_rank, (str(tmp_path), ways), RANKS)

    images, labels = several_images()
    model = network(torch.float64)
    discriminative_loss(model(images), labels, ignore_label=0).backward()
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"{rank}.pt")
        for way in ways:
            for ours, expected in zip(found[way], gradients(model), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15, msg=way)
