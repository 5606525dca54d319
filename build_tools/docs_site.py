"""What `mkdocs build` needs beside mkdocs.yml: pages from the root, and docstrings as Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# A file of the root -> its page.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Files of the root that are no pages: links to them become plain text.
NO_PAGE = re.compile(r"\[([^\]]*)\]\((?:\.\./)?(?:CITATION\.cff|LICENSE)\)")
ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages whose text stands in the root of the repository."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links as they are in the repository become links between pages."""
    markdown = NO_PAGE.sub(r"\1", markdown).replace("](docs/", "](")
    for source, page in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({page}", markdown)
    return markdown


class Docstrings(griffe.Extension):
    """Docstrings as the handler reads them: links for roles, `Examples` for `Example`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of an object that has been loaded."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(r"[`\1`][\1]", text)
