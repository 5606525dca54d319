"""Which tests a run collects, by device and by --short, and that it says which it does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import conftest
import pytest
from support.devices import DEVICES, Device, cpu

IDS = ("tests/a.py::test_one", "tests/a.py::test_two[absent]", "tests/b.py::test_three[slow]")


class Item:
    """As much of a collected test as the collection looks at."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid
        self.markers: list[str] = []
        if "[" in nodeid:
            self.callspec = SimpleNamespace(params={"device": nodeid[:-1].partition("[")[2]})

    def add_marker(self, name: str) -> None:
        self.markers.append(name)


class Config:
    """Of a run over all tests."""

    args_source = pytest.Config.ArgsSource.TESTPATHS

    def __init__(self, *, short: bool) -> None:
        self.short = short
        self.deselected: list[Any] = []
        self.hook = SimpleNamespace(
            pytest_deselected=lambda items: self.deselected.extend(item.nodeid for item in items)
        )

    def getoption(self, name: str) -> bool:
        assert name == "--short"
        return self.short


@pytest.fixture(autouse=True)
def devices_and_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "absent", Device("absent", cpu, lambda: "was not bought"))
    monkeypatch.setitem(DEVICES, "slow", Device("slow", cpu, marker="emulated"))
    for entry in list(conftest.ONLY_IN_TEST_ALL):
        monkeypatch.delitem(conftest.ONLY_IN_TEST_ALL, entry)
    monkeypatch.setitem(conftest.ONLY_IN_TEST_ALL, r"tests/b\.py", "a.py stays")


def collect(config: Config, ids: tuple[str, ...] = IDS) -> list[Any]:
    items: list[Any] = [Item(nodeid) for nodeid in ids]
    conftest.pytest_collection_modifyitems(config, items)  # type: ignore[arg-type]
    return items


def test_of_a_device_that_is_not_here_there_are_no_tests() -> None:
    config = Config(short=False)
    items = collect(config)
    assert [item.nodeid for item in items] == [IDS[0], IDS[2]]
    assert config.deselected == [IDS[1]]
    assert [item.markers for item in items] == [[], ["emulated"]]
    (line,) = conftest.pytest_report_header(config)  # type: ignore[arg-type]
    here, not_here = line.split("; not here: ")
    assert here.startswith("devices: cpu, ")
    assert "absent" not in here
    assert "absent (was not bought)" in not_here


def test_short_leaves_out_what_is_listed_and_says_so() -> None:
    config = Config(short=True)
    assert [item.nodeid for item in collect(config)] == [IDS[0]]
    assert config.deselected == list(IDS[1:])
    lines = conftest.pytest_report_header(config)  # type: ignore[arg-type]
    assert lines[2:] == [r"  tests/b\.py  a.py stays"]


def test_an_entry_without_a_test_is_an_error() -> None:
    with pytest.raises(pytest.UsageError, match=r"no test matches .*b\\\\\.py"):
        collect(Config(short=True), IDS[:2])
