"""Options, fixtures and the collection of all tests. The devices: support/devices.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.devices import DEVICES, device_of
from support.only_in_test_all import ONLY_IN_TEST_ALL, entry_of

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
    parser.addoption(
        "--sm75", action="store_true", help="cuda_compiled runs the code for sm_75 (default: newer)"
    )
    parser.addoption(
        "--short", action="store_true", help="without what support/only_in_test_all.py lists"
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    absent = {name: device.why_not_here() for name, device in DEVICES.items()}
    here = ", ".join(name for name, why in absent.items() if not why)
    not_here = ", ".join(f"{name} ({why})" for name, why in absent.items() if why)
    lines = [f"devices: {here}" + (f"; not here: {not_here}" if not_here else "")]
    if config.getoption("--short"):
        lines.append("left to make test-all (tests/support/only_in_test_all.py):")
        lines += [f"  {entry}  {reason}" for entry, reason in ONLY_IN_TEST_ALL.items()]
    return lines


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of a device as it says, and leave out those of devices that are not here and,
    with --short, those of the list."""
    kept, left_out, entries = [], [], set()
    for item in items:
        device = device_of(item)
        if device is not None and device.marker:
            item.add_marker(device.marker)
        absent = device is not None and device.why_not_here()
        entry = entry_of(item.nodeid) if config.getoption("--short") else None
        entries.add(entry)
        (left_out if absent or entry else kept).append(item)
    unused = ONLY_IN_TEST_ALL.keys() - entries
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if config.getoption("--short") and everything and unused:
        raise pytest.UsageError(f"support/only_in_test_all.py: no test matches {sorted(unused)}")
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(scope="session")
def emulated_ops() -> Any:
    """The emulated ops with their gradients, built at their first use in a session."""
    import emulator

    from discloss_cuda import _ops

    return _ops.bind(emulator.load())


@pytest.fixture(scope="session")
def compiled_ops() -> Any:
    """The ops as nvcc compiles them, likewise."""
    import ptx

    return ptx.ops()


@pytest.fixture(params=[name for name, device in DEVICES.items() if device.everywhere])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the tensors of the test go, on each of the devices of support/devices.py."""
    with DEVICES[request.param].enter(request) as where:
        yield where
