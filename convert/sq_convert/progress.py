"""Progress on stderr: a bar with ETA on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

LINE_SECONDS = 5.0  # between two plain lines


class Step:
    """A stage in progress."""

    def advance(self, n: float = 1) -> None:
        """Reports ``n`` further units done."""

    def resume(self, n: float) -> None:
        """Starts from ``n`` units that an earlier run has done."""


class Progress:
    """Where stages and messages are shown."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """One line for the user."""
        self._console.print(escape(message))

    def show(self, table: Table) -> None:
        """A table for the user."""
        self._console.print(table)

    @contextmanager
    def stage(self, name: str, total: float, unit: str) -> Iterator[Step]:
        """Shows the named stage while the block runs; ``total`` units make it up."""
        if self._console.is_terminal:
            columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[amount]}"),
                       TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
            with RichProgress(*columns, console=self._console) as bar:
                yield _BarStep(bar, name, total, unit)
        else:
            step = _LineStep(self, name, total, unit)
            yield step
            step.finish()


class _BarStep(Step):
    def __init__(self, bar: RichProgress, name: str, total: float, unit: str) -> None:
        self._bar, self._total, self._unit, self._done = bar, total, unit, 0.0
        self._task = bar.add_task(name, total=total, amount="")

    def advance(self, n: float = 1) -> None:
        self._done += n
        self._bar.update(self._task, advance=n, amount=_of(self._done, self._total, self._unit))

    def resume(self, n: float) -> None:
        self._done = n
        # A task that starts anew does not count what was there as work of this moment.
        self._bar.reset(
            self._task, total=self._total, completed=int(n), amount=_of(n, self._total, self._unit)
        )


class _LineStep(Step):
    def __init__(self, progress: Progress, name: str, total: float, unit: str) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._done = self._resumed = 0.0
        self._start = self._spoken = time.monotonic()

    def advance(self, n: float = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._spoken >= LINE_SECONDS and self._done < self._total:
            self._spoken = now
            left = (now - self._start) / (self._done - self._resumed) * (self._total - self._done)
            self._progress.say(
                f"{self._name}: {_of(self._done, self._total, self._unit)}, {duration(left)} left"
            )

    def resume(self, n: float) -> None:
        self._done = self._resumed = n

    def finish(self) -> None:
        self._progress.say(
            f"{self._name}: {amount(self._total, self._unit)}, {duration(time.monotonic() - self._start)}"
        )


def amount(n: float, unit: str) -> str:
    """ "92.4 MB", "106.2 M weights", "100 sequences"."""
    if unit == "bytes":
        return size(n)
    return f"{n / 1e6:.1f} M {unit}" if n >= 1e6 else f"{n:.0f} {unit}"


def _of(done: float, total: float, unit: str) -> str:
    return f"{amount(done, unit).removesuffix(unit).rstrip()} of {amount(total, unit)}"


def duration(seconds: float) -> str:
    """ "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def size(n_bytes: float) -> str:
    """ "812 kB", "92.4 MB", "3.61 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"
