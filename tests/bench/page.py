"""docs/BENCHMARKS.md: `make bench-peers` writes all but the last section, `make bench-gpu` that one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

GPU_HEADING = "## One NVIDIA GPU"  # the last section, of bench-gpu alone


def without_gpu(text: str) -> str:
    return text.split(f"\n{GPU_HEADING}\n")[0]


def gpu_section(text: str) -> str:
    """What bench-gpu wrote into the page, to be kept."""
    return text[len(without_gpu(text)) :]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:], ""])
