"""What a build says while it compiles.

Front ends such as pip keep what a build prints to themselves unless asked (``pip install -v``), and
show it only where the build failed. So under a front end each line goes to the terminal as well,
where there is one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TERMINAL = Path("/dev/tty")


def say(text: str) -> None:
    """A line on stderr and, in a build that a front end has started, on the terminal."""
    print(f"discloss_cuda: {text}", file=sys.stderr, flush=True)
    backend = getattr(sys.modules.get("backend"), "__file__", None)
    if backend == str(Path(__file__).with_name("backend.py")):
        try:
            with TERMINAL.open("w") as terminal:
                terminal.write(f"\r\033[Kdiscloss_cuda: {text}\n")  # over what pip left in its line
        except OSError:
            pass  # no terminal


@contextmanager
def compiling(folder: Path, sources: list[str], seconds: float = 0.5) -> Iterator[None]:
    """Says what ninja has compiled in ``folder``, as its log there tells every few ``seconds``."""
    known = set(entries(folder))
    over = threading.Event()

    def watch() -> None:
        done = False
        while not done:
            done = over.wait(seconds)  # and look once more
            for entry in entries(folder):
                if entry not in known:
                    known.add(entry)
                    begin, end, _, output, _ = entry  # ms, ms, time of the file, file, hash
                    took = (int(end) - int(begin)) / 1000
                    say(f"compiled {source_of(output, sources)} in {took:.0f} s")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def source_of(output: str, sources: list[str]) -> str:
    """The source of an object, which is named by its path (C++) or by its name (CUDA)."""
    name = output.removesuffix(".o")
    found = (s for s in sources if name.endswith((str(Path(s).with_suffix("")), Path(s).name)))
    return next(found, name)


def entries(folder: Path) -> list[tuple[str, ...]]:
    """The complete lines of ninja's log: one for each file, added when it has been compiled."""
    log = folder / ".ninja_log"
    text = log.read_text() if log.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [tuple(line.split("\t")) for line in lines if line.count("\t") == 4]
