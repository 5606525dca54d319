"""Which ops a piece of code calls, and with what."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OpCalls(TorchDispatchMode):
    """Within it every call that reaches a kernel of ``op`` is listed: its arguments."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op = op
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if op is self.op:
            self.calls.append(args)
        return op(*args, **(kwargs or {}))
