"""The ranks of a process group, and what they call."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

TIMEOUT = 30  # seconds; a rank that never comes is an error then


def join(rank: int, store: distributed.Store, world_size: int) -> None:
    """Become a rank of the default group."""
    distributed.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )


def spawn(work: Callable[..., None], arguments: tuple[Any, ...], world_size: int) -> None:
    """Run ``work(rank, *arguments)`` in a process for each rank, and wait for all."""
    processes: Any = torch.multiprocessing.spawn(work, arguments, nprocs=world_size, join=False)
    assert any(processes.join(timeout=4 * TIMEOUT) for _ in range(world_size))  # one by one
