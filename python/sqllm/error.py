"""The one exception of the package."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """What kind of failure an `Error` is (``sq_status`` in sq.h)."""

    IO = 1
    """A file cannot be opened, read or mapped."""
    FORMAT = 2
    """The file is damaged, or no GGUF file."""
    UNSUPPORTED = 3
    """The file is sound, but this library cannot run it."""
    MEMORY = 4
    """An allocation failed."""
    ARGUMENT = 5
    """The caller passed something impossible."""
    CONTEXT = 6
    """The context has no room for the tokens."""
    CANCELLED = 7
    """The call was stopped."""


class Error(Exception):
    """A failure that the library reports.

    `message` says what, where, expected against found, and what to do; `status` says of what kind it is.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def __reduce__(self) -> tuple[type[Error], tuple[Status, str]]:
        return (Error, (self.status, self.message))
