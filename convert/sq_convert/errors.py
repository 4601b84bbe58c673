"""What goes wrong for a reason the user can do something about, and words for it."""

from __future__ import annotations

from collections.abc import Sequence


class ConvertError(Exception):
    """The message is one sentence or two: what, where, expected and found, what to do. Exit status 1."""


class UsageError(ConvertError):
    """Options that contradict each other or make no sense. Exit status 2."""


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return (text[0] if text else "") or type(error).__name__


def count(items: Sequence[str], one: str, many: str) -> str:
    """ "1 tensor is", "3 tensors are"."""
    return f"1 {one}" if len(items) == 1 else f"{len(items)} {many}"


def some(items: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(items[:3]) + (", …" if len(items) > 3 else "")
