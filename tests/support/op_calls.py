"""Which ops a piece of code calls, and with what."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OpCalls(TorchDispatchMode):
    """Within it every call that reaches a kernel of ``op`` is listed: its name and arguments."""

    def __init__(self, op: Any = None) -> None:
        super().__init__()
        self.op = op
        self.names: list[str] = []
        self.calls: list[tuple[Any, ...]] = []

    def wants(self, op: Any) -> bool:
        return op is self.op

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.wants(op):
            self.names.append(op.name())
            self.calls.append(args)
        return op(*args, **(kwargs or {}))
