"""What only a GPU can show: no wait for the host, CUDA graphs, streams, devices, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from discloss_cuda import discriminative_loss, discriminative_loss_packed

# torch warns whenever its own check for synchronization is turned on.
pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")

on_cuda = pytest.mark.parametrize("device", ["cuda"], indirect=True)
# The large ones take one launch a pass on every card; the others may take a single one for all.
KINDS = ("dense", "packed", "terms", "packed terms", "large dense", "large packed")
MAX_INSTANCES = 12


@dataclasses.dataclass
class Call:
    """A call whose tensors can be filled with other numbers in place."""

    embeddings: Tensor
    labels: Tensor
    offsets: Tensor | None
    terms: bool

    @staticmethod
    def make(kind: str, device: torch.device, seed: int = 0) -> Call:
        """Two images or clouds of about 5000 pixels (large: 12000) and up to 11 instances; id 0
        is ignored."""
        side = 3 if "large" in kind else 2
        generator = torch.Generator().manual_seed(seed)
        embeddings = torch.randn(2, 8, 35 * side, 37 * side, generator=generator)
        labels = torch.randint(0, 12, (2, 35, 37), generator=generator)
        labels = labels.repeat_interleave(side, 1).repeat_interleave(side, 2)
        offsets = None
        if "packed" in kind:
            embeddings = embeddings.movedim(1, -1).reshape(-1, 8)
            labels = labels.flatten()
            offsets = torch.tensor([0, 4000 + seed, len(labels)]).to(device)
        return Call(
            embeddings.contiguous().to(device), labels.to(device), offsets, kind.endswith("terms")
        )

    def copy_(self, other: Call) -> None:
        self.embeddings.copy_(other.embeddings)
        self.labels.copy_(other.labels)
        if self.offsets is not None and other.offsets is not None:
            self.offsets.copy_(other.offsets)

    def __call__(self) -> list[Tensor]:
        """Loss, terms if any, and the gradient of all that came."""
        leaf = self.embeddings.detach().requires_grad_()
        options: dict[str, Any] = {"ignore_label": 0, "max_instances": MAX_INSTANCES}
        options |= {"return_terms": self.terms}
        result: Any
        if self.offsets is None:
            result = discriminative_loss(leaf, self.labels, **options)
        else:
            result = discriminative_loss_packed(leaf, self.labels, self.offsets, **options)
        results = list(result) if self.terms else [result]
        (gradient,) = torch.autograd.grad(results, leaf, [torch.ones_like(r) for r in results])
        return [*(r.detach() for r in results), gradient]


def assert_equal(ours: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_this_file(kind: str, device: torch.device) -> None:
    """Other numbers give other results, copied in place or not."""
    call, other = Call.make(kind, device), Call.make(kind, device, seed=1)
    first, second = call(), other()
    assert not torch.equal(first[-1], second[-1])
    call.copy_(other)
    assert_equal(call(), second)


@contextlib.contextmanager
def no_synchronization() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_never_waits(kind: str, device: torch.device) -> None:
    """With max_instances: torch sees no synchronization, and the call returns while the device is
    still busy with what came before."""
    call = Call.make(kind, device)
    expected = call()
    with no_synchronization():
        call()
    before = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)  # about half a second
    before.record()
    results = call()
    waited = before.query()
    torch.cuda.synchronize()
    assert not waited, "the call waited for the device"
    assert_equal(results, expected)


@on_cuda
def test_a_wait_would_be_noticed(device: torch.device) -> None:
    """Without max_instances one number is read back."""
    call = Call.make("dense", device)
    torch.cuda._sleep(1_000_000_000)
    before = torch.cuda.Event()
    before.record()
    discriminative_loss(call.embeddings, call.labels)
    assert before.query()


def captured(call: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of the call, and the tensors that a replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = call()
    return graph, results


@on_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_call_is_replayed_with_other_inputs(kind: str, device: torch.device) -> None:
    call = Call.make(kind, device)
    graph, results = captured(call)
    for seed in (1, 2, 0, 1):
        other = Call.make(kind, device, seed)
        call.copy_(other)
        graph.replay()
        assert_equal(results, other())


@on_cuda
def test_capture_without_max_instances_is_refused(device: torch.device) -> None:
    """By an error that names the reason; in a process of its own, as a failed capture leaves the
    allocator of torch unusable."""
    program = """
import torch
from discloss_cuda import discriminative_loss
x = torch.randn(1, 4, 100, device="cuda")
labels = torch.zeros(1, 100, dtype=torch.long, device="cuda")
discriminative_loss(x, labels)
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        discriminative_loss(x, labels)
except RuntimeError as error:
    print("refused:", error.__context__ or error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "refused:" in run.stdout, run.stderr


@on_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_the_current_stream_is_used(kind: str, device: torch.device) -> None:
    """Inputs arrive late on a side stream: work on any other stream would read the old ones."""
    call, other = Call.make(kind, device), Call.make(kind, device, seed=1)
    expected = other()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        call.copy_(other)
        results = call()
    stream.synchronize()
    assert_equal(results, expected)


@on_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_bitwise_equal_beside_a_busy_stream(kind: str, device: torch.device) -> None:
    """Whatever else the multiprocessors do, and in whatever order they take the blocks."""
    call = Call.make(kind, device)
    expected = call()
    noise = torch.randn(2048, 2048, device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for _ in range(10):
        with torch.cuda.stream(side):
            for _ in range(4):
                torch.mm(noise, noise)
        assert_equal(call(), expected)
    torch.cuda.synchronize()


ALLOCATIONS, ROUNDED_TO = 24, 512  # more tensors than a call makes, and the allocator's grain


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_peak_memory(device: torch.device, packed: bool, dtype: torch.dtype) -> None:
    """The gradient, 4 bytes a pixel, 16 B K (D + 4) bytes."""
    images, channels, instances = 2, 16, 50
    embeddings = torch.randn(images, channels, 256, 256, device=device, dtype=dtype)
    labels = torch.arange(256 * 256, device=device).reshape(1, 256, 256) // 1311
    labels = labels.repeat(images, 1, 1)
    offsets = None
    if packed:
        embeddings = embeddings.movedim(1, -1).reshape(-1, channels)
        labels = labels.flatten()
        offsets = torch.arange(images + 1, device=device) * 256 * 256
    embeddings.requires_grad_()

    def call() -> None:
        embeddings.grad = None
        if offsets is None:
            loss = discriminative_loss(embeddings, labels, max_instances=instances)
        else:
            loss = discriminative_loss_packed(embeddings, labels, offsets, max_instances=instances)
        loss.backward()

    call()
    embeddings.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    peak = torch.cuda.max_memory_allocated() - before
    tables = 16 * images * instances * (channels + 4)
    bound = embeddings.nbytes + 4 * labels.numel() + tables
    assert embeddings.nbytes <= peak <= bound + ALLOCATIONS * ROUNDED_TO


@on_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_another_device_than_the_current_one(kind: str, device: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    expected = Call.make(kind, torch.device("cuda", 0))()
    assert torch.cuda.current_device() == 0
    results = Call.make(kind, torch.device("cuda", 1))()
    assert torch.cuda.current_device() == 0
    assert all(result.device.index == 1 for result in results)
    for ours, other in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), other.cpu())
