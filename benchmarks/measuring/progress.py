"""What is being done now, for who watches."""

from __future__ import annotations

import sys


class ProgressLine:
    """One line on a terminal, rewritten; nothing where standard error is kept."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._about = ""

    def start(self, about: str) -> None:
        self._about = about

    def __call__(self, text: str) -> None:
        self._write(f"{self._about}: {text}"[:100])

    def clear(self) -> None:
        self._write("")

    def _write(self, line: str) -> None:
        if self._shown:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
