"""How a wrong argument is described in a message. Needs no compiled module."""

from __future__ import annotations

from torch import Tensor

__all__ = ["cut", "describe"]

LONGEST_VALUE = 200  # characters of a value in a message


def describe(value: object) -> str:
    """A wrong argument, for a message."""
    if isinstance(value, Tensor):
        return "a tensor"
    return f"{cut(repr(value))} of type {type(value).__name__}"


def cut(text: str) -> str:
    """The beginning of a text that may be long."""
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
