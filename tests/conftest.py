"""The device every test body runs on: the CPU, the CUDA kernels emulated on it, a GPU."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# The device fixture stays as it is while hypothesis varies the rest.
settings.register_profile(
    "usual",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "long", settings.get_profile("usual"), max_examples=1000, derandomize=False, print_blob=True
)
settings.load_profile("usual")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="of the emulated schedules (default: 0)")


_DEVICES = ("cpu", pytest.param("cuda_emulated", marks=pytest.mark.emulated), "cuda")


@pytest.fixture(scope="session")
def emulated_ops() -> Any:
    """The emulated ops with their gradients, built at their first use in a session."""
    import emulator

    from discloss_cuda import _ops

    return _ops.bind(emulator.load())


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


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the tensors go. With "cuda_emulated" that is the CPU, and the ops are the kernels of
    csrc/cuda run by the emulator, under the same Python; "cuda_emulated_sm8" and "_sm9" choose
    whether that device has clusters, which the seed does otherwise."""
    if request.param.startswith("cuda_emulated"):
        import emulator

        from discloss_cuda import _ops

        ops = request.getfixturevalue("emulated_ops")
        # Another order of threads for every test and seed. On one multiprocessor a block visits
        # many tiles, on four there are many blocks; with clusters a small batch is one launch.
        # Also repairs a device whose kernel failed in another test.
        seed = zlib.crc32(request.node.nodeid.encode()) + request.config.getoption("--seed")
        compute_capability = int(request.param.partition("_sm")[2] or 8 + seed // 2 % 2)
        emulator.device().configure(
            seed=seed,
            compute_capability=compute_capability,
            multiprocessors=16 if compute_capability == 9 else 1 if seed % 2 else 4,
        )
        with _ops.use(ops), filled_memory():
            yield torch.device("cpu")
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU is visible")
    yield torch.device(request.param)
