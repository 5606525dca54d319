"""The ops with their numbers in tensors, for a compiled graph that serves many values.

A number in the schema of an op is a constant of the graph: each value of a schedule would be
another graph. These ops take the same numbers as CPU tensors, read them when they run, and call the
op that has them in its schema. A CUDA graph would keep what was read once, so they are marked as
unsafe to capture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["define", "ids", "vector"]

LISTS_OF_NUMBERS = ("List[float]", "List[int]")
_libraries: list[torch.library.Library] = []  # an op lives as long as the library that defines it


def define(op: Any, fake: Any) -> Any:
    """``op`` once more, as ``<its name>_scheduled``, with a tensor for each list of numbers.

    Args:
        op: an overload whose schema has arguments ``float[]`` or ``int[]``.
        fake: its fake kernel; it is given the tensors.
    """
    namespace, name = op._schema.name.split("::")
    schema = str(op._schema).replace(f"{namespace}::{name}", f"{name}_scheduled")
    schema = schema.replace("float[]", "Tensor").replace("int[]", "Tensor")
    numbers = [str(argument.type) in LISTS_OF_NUMBERS for argument in op._schema.arguments]

    def kernel(*arguments: Any, **keywords: Any) -> Any:
        read = [a.tolist() if number else a for a, number in zip(arguments, numbers, strict=False)]
        return op(*read, **keywords)

    library = torch.library.Library(namespace, "FRAGMENT")
    library.define(schema, tags=(torch.Tag.cudagraph_unsafe,))
    library.impl(f"{name}_scheduled", kernel, "CompositeExplicitAutograd")
    _libraries.append(library)
    torch.library.register_fake(f"{namespace}::{name}_scheduled", fake, lib=library)
    return getattr(getattr(torch.ops, namespace), f"{name}_scheduled").default


def vector(numbers: Sequence[Any]) -> Tensor:
    """Numbers as one CPU tensor of float64, each known or not known yet."""
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack([one * number for number in numbers])  # a product can wait for its factor


def ids(values: list[int] | Tensor) -> Tensor:
    """Ids as one CPU tensor of int64."""
    return torch.as_tensor(values, dtype=torch.int64, device="cpu")
