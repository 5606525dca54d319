"""The documentation says what is so: its examples run, its links lead somewhere."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import discloss_cuda
from discloss_cuda import (
    _ops,
    _tracking_metrics,
    functional,
    metrics,
    module,
    reference,
    terms,
    tracking,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
MODULES = (
    discloss_cuda,
    _ops,
    _tracking_metrics,
    functional,
    metrics,
    module,
    reference,
    terms,
    tracking,
)


def examples(modules: tuple[ModuleType, ...]) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder()
    return [test for source in modules for test in finder.find(source) if test.examples]


def code_blocks(page: Path) -> str:
    """The page as Python: its ``python`` blocks on the lines where they stand, nothing else."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        inside = line.strip() == "```python" if fence else inside
        lines.append(line if inside and not fence else "")
    return "\n".join(lines)


@pytest.mark.parametrize("example", examples(MODULES), ids=lambda example: example.name)
def test_docstring(example: doctest.DocTest) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    result = runner.run(example, out=output.append, clear_globs=False)
    assert result.failed == 0, "".join(output)


def test_public_functions_have_examples() -> None:
    shown = {example.name.rpartition(".")[2] for example in examples(MODULES)}
    assert shown >= {"DiscriminativeLoss", "discriminative_loss", "discriminative_loss_packed"}


WITH_CODE = [page for page in PAGES if code_blocks(page).strip()]


def test_the_pages_for_users_have_code() -> None:
    assert {ROOT / "README.md", ROOT / "docs" / "use.md"} <= set(WITH_CODE)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_of_a_page(page: Path) -> None:
    """Blocks marked ``python`` run one after the other, as one program."""
    exec(compile(code_blocks(page), str(page), "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [
        target for target in targets if "://" not in target and not target.startswith("mailto:")
    ]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert missing == []


def test_tests_named_in_tables_exist() -> None:
    """Every row of docs/pytorch.md names its tests, and they are there."""
    page = (ROOT / "docs" / "pytorch.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| feature |", "| --- |"))]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        for file, test in named:
            source = ROOT / "tests" / file
            assert source.exists(), row
            assert f"def {test}(" in source.read_text(), row


# --- figures ---


def measured() -> dict[tuple[str, str], dict[str, Any]]:
    """The newest committed result of bench_loss.py on a CPU, by workload and dtype."""
    files = sorted((ROOT / "benchmarks" / "results").glob("20*.json"))
    found = [json.loads(file.read_text()).get("results", []) for file in files]
    records = [record for records in found for record in records if "speedups" in record]
    ours = [record for record in records if record["device"] == "cpu"]
    return {(record["workload"], record["dtype"]): record for record in ours}


def rounded(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 1 else f"{milliseconds:.1f}"


def times_faster(record: dict[str, Any], group: str) -> str:
    ratio = record["speedups"].get(group)
    return "-" if ratio is None else f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def full_row(record: dict[str, Any]) -> str:
    ours, both = record["rows"][0], record["rows"][0]["both"]
    median, low, high = (rounded(both[f"{part}_ms"]) for part in ("median", "q20", "q80"))
    cells = [
        f"`{record['workload']}` {record['shape']}",
        record["dtype"],
        record["instances"],
        f"{median} ({low}-{high})",
        *(f"{both[unit]:.1f}" for unit in ("copies", "clones")),
        *(times_faster(record, group) for group in ("torch.compile", "eager", "reference")),
        f"{ours['peak_bytes'] / record['embedding_bytes']:.2f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def short_row(record: dict[str, Any]) -> str:
    ours, both = record["rows"][0], record["rows"][0]["both"]
    cells = [
        f"`{record['workload']}` {record['shape']} K{record['instances']}",
        rounded(both["median_ms"]),
        f"{both['copies']:.1f}",
        *(times_faster(record, group) for group in ("torch.compile", "eager")),
        f"{ours['peak_bytes'] / record['embedding_bytes']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def rows_of(page: Path, names: set[str]) -> list[str]:
    """The rows of a page's tables that begin with the name of a workload and its shape."""
    lines = page.read_text().splitlines()
    return [line for line in lines if re.match(rf"\| `({'|'.join(names)})` \[", line)]


def test_figures_are_those_of_the_committed_results() -> None:
    records = measured()
    names = {workload for workload, _ in records}
    every = rows_of(ROOT / "docs" / "performance.md", names)
    assert sorted(every) == sorted(map(full_row, records.values()))
    float32 = {short_row(record) for (_, dtype), record in records.items() if dtype == "float32"}
    shown = rows_of(ROOT / "README.md", names)
    assert len(shown) == 6
    assert set(shown) <= float32


@pytest.mark.parametrize(("page", "most"), [("README.md", 120), ("docs/design.md", 250)])
def test_a_page_stays_short(page: str, most: int) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= most


# --- the site ---


class Loaded(HTMLParser):
    """Addresses that a browser loads to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_link = tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload")
        address = given.get("href") if is_link else given.get("src") if tag != "a" else None
        if address is not None:
            self.addresses.append(address)


def test_the_site_is_complete_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run([*command, str(tmp_path)], cwd=ROOT, env=environment, text=True)
    assert built.returncode == 0
    for page in ("index", "install", "use", "api", "design", "performance", "testing"):
        html = (tmp_path / f"{page}.html").read_text()
        loaded = Loaded()
        loaded.feed(html)
        assert any(address.endswith(".css") for address in loaded.addresses), page
        assert [address for address in loaded.addresses if "//" in address] == [], page
        assert 'class="mermaid"' not in html, "the theme loads mermaid from elsewhere"
    documented = (tmp_path / "api.html").read_text()
    public = [name for name in discloss_cuda.__all__ if name != "reference"]
    missing = [name for name in public if f'id="discloss_cuda.{name}"' not in documented]
    assert missing == []
