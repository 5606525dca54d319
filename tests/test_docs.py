"""The documentation says what is so: its examples run, its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest

import discloss_cuda
from discloss_cuda import _ops, functional, module, reference, terms

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
MODULES = (discloss_cuda, _ops, functional, module, reference, terms)


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


def test_readme_examples() -> None:
    """Blocks marked ``python`` run one after the other, as one program."""
    readme = ROOT / "README.md"
    source = code_blocks(readme)
    assert source.strip(), "expected python blocks in README.md, got none"
    exec(compile(source, str(readme), "exec"), {"__name__": "readme"})


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
