"""The devices that a test body runs on: where its tensors go, and what computes there.

A test that takes the fixture ``device`` runs on every device of ``DEVICES`` that is ``everywhere``;
one that is parametrized over names of devices runs on those. Tests of a device that this machine
has not are not collected, and the head of a run says which devices those are.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Device:
    """A value of the fixture ``device``."""

    name: str  # in the ids of the tests
    enter: Callable[[pytest.FixtureRequest], AbstractContextManager[torch.device]]  # for one test
    why_not_here: Callable[[], str] = lambda: ""  # "" where this machine has it
    marker: str = ""  # which its tests get
    everywhere: bool = True  # False: for tests that name it


@contextlib.contextmanager
def cpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    yield torch.device("cpu")


@contextlib.contextmanager
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    yield torch.device("cuda")


def why_no_gpu() -> str:
    return "" if torch.cuda.is_available() else "no GPU is visible"


@contextlib.contextmanager
def filled_memory() -> Iterator[None]:
    """While it lasts, at::empty gives NaN, the greatest integers, and bytes 0xFF (a workspace).

    That is what torch's deterministic mode does (torch.utils.deterministic): what a kernel fails to
    write, or reads before it is written, is seen in the result.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def schedule_seed(request: pytest.FixtureRequest) -> int:
    """Another order of threads and blocks for every test and every ``--seed``."""
    return zlib.crc32(request.node.nodeid.encode()) + request.config.getoption("--seed")


def emulated(
    compute_capability: int | None = None,
) -> Callable[[pytest.FixtureRequest], AbstractContextManager[torch.device]]:
    """The CPU, where the ops are the kernels of csrc/*/cuda run by the emulator.

    The compute capability, 8 or 9, says whether the device has clusters; None: the seed does.
    """

    @contextlib.contextmanager
    def enter(request: pytest.FixtureRequest) -> Iterator[torch.device]:
        import emulator

        from discloss_cuda import _ops

        ops = request.getfixturevalue("emulated_ops")
        seed = schedule_seed(request)
        major = compute_capability or 8 + seed // 2 % 2
        # On one multiprocessor a block visits many tiles, on four there are many blocks; with
        # clusters a small batch is one launch. Also repairs a device whose kernel failed in
        # another test.
        emulator.device().configure(
            seed=seed,
            compute_capability=major,
            multiprocessors=16 if major == 9 else 1 if seed % 2 else 4,
        )
        with _ops.use(ops), filled_memory():
            yield torch.device("cpu")

    return enter


@contextlib.contextmanager
def compiled(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, where the ops are the kernels of csrc/*/cuda as nvcc compiles them, run by the
    interpreter of tests/ptx: code for sm_80 or sm_90, as the seed says; with --sm75, for that."""
    import ptx

    from discloss_cuda import _ops

    ops = request.getfixturevalue("compiled_ops")
    seed = schedule_seed(request)
    major = 7 if request.config.getoption("--sm75") else 8 + seed // 2 % 2
    ptx.device().configure(
        seed=seed,
        compute_capability=major,
        multiprocessors=16 if major == 9 else 1 if seed % 2 else 4,
    )
    with _ops.use(ops), filled_memory(), ptx.device().recorded_memory():
        yield torch.device("cpu")


DEVICES = {
    device.name: device
    for device in (
        Device("cpu", cpu),
        Device("cuda_emulated", emulated(), marker="emulated"),
        Device("cuda_emulated_sm8", emulated(8), marker="emulated", everywhere=False),
        Device("cuda_emulated_sm9", emulated(9), marker="emulated", everywhere=False),
        Device("cuda_compiled", compiled, marker="compiled"),
        Device("cuda", gpu, why_no_gpu),
    )
}


def device_of(item: pytest.Item) -> Device | None:
    """The device that a collected test runs on, None for one that takes no device."""
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("device") if callspec is not None else None
    return DEVICES[name] if name is not None else None
