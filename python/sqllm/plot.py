"""Quality against true bits, drawn with matplotlib: what ``sq-eval --plot`` starts.

    sq-eval MODEL... TEXT --json | python -m sqllm.plot OUT.png [--peers POINTS.json]

A point is an object with the keys ``bits_per_weight`` and ``kl_divergence`` or ``perplexity``, where known
``kl_standard_error`` or ``standard_error``, and ``name`` or ``file``; POINTS.json holds an array of them.
What ``sq-eval --json`` prints is such a file, too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HAS_COMPLAINED = 3  # as sq-eval knows it


@dataclass(frozen=True)
class Quantity:
    """What the vertical axis shows."""

    key: str
    error_key: str
    label: str


DIVERGENCE = Quantity("kl_divergence", "kl_standard_error", "KL divergence from the reference, nats a token")
PERPLEXITY = Quantity("perplexity", "standard_error", "perplexity")

Point = Mapping[str, Any]


class PlotError(Exception):
    """A sentence: what is wrong and what to do."""


def read_points(text: str, where: str) -> list[Point]:
    """The points of a JSON text, an array of them or a single one."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise PlotError(f"{where}: no JSON ({error}).") from None
    points = found if isinstance(found, list) else [found]
    for i, point in enumerate(points):
        known = point if isinstance(point, dict) else {}
        if not _is_number(known.get("bits_per_weight")) or not any(
            _is_number(known.get(quantity.key)) for quantity in (DIVERGENCE, PERPLEXITY)
        ):
            raise PlotError(
                f"{where}: point {i} needs the numbers bits_per_weight and kl_divergence or perplexity."
            )
    return points


def draw(models: Sequence[Point], peers: Sequence[Point]) -> Any:
    """The figure of matplotlib. KL divergence where every model has one, else perplexity."""
    figure_module = _matplotlib()
    quantity = DIVERGENCE if all(_is_number(p.get(DIVERGENCE.key)) for p in models) else PERPLEXITY
    figure = figure_module.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    shown: list[float] = []
    for label, points, colour, mark in (
        ("SqueezeLLM", models, "#1f5fa8", "o"),
        ("peers", peers, "#a05a1f", "s"),
    ):
        missing = [_name(p) for p in points if not _is_number(p.get(quantity.key))]
        if missing:
            raise PlotError(f"{missing[0]} has no {quantity.key}, which the picture shows.")
        bits, values = [p["bits_per_weight"] for p in points], [p[quantity.key] for p in points]
        errors = [e if _is_number(e := p.get(quantity.error_key)) else 0 for p in points]
        axes.errorbar(bits, values, errors, fmt=mark, color=colour, capsize=2, label=label)
        for point, x, y in zip(points, bits, values, strict=True):
            axes.annotate(_name(point), (x, y), (5, 4), textcoords="offset points", size=8, color=colour)
        shown += values
    if min(shown) > 0 and max(shown) > 4 * min(shown):
        axes.set_yscale("log")
    axes.set_xlabel("true bits a weight: indices, tables, kept weights and row pointers")
    axes.set_ylabel(quantity.label)
    axes.grid(alpha=0.3)
    axes.margins(x=0.12)
    if peers:
        axes.legend()
    return figure


def _matplotlib() -> Any:
    try:
        from matplotlib import figure
    except ImportError:
        raise PlotError("A picture needs matplotlib: pip install 'sqllm[plot]'.") from None
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _name(point: Point) -> str:
    name = str(point.get("name") or Path(str(point.get("file", ""))).name.removesuffix(".sq.gguf"))
    return name.replace("$", r"\$")  # no formulas


def _run(args: argparse.Namespace) -> None:
    peers = read_points(args.peers.read_text("utf-8"), str(args.peers)) if args.peers else []
    if args.check:
        _matplotlib()
        folder = args.out.absolute().parent
        if args.out.suffix.lower() != ".png" or not os.access(folder, os.W_OK):
            raise PlotError(f"{args.out}: expected the name of a .png file in a folder to write to.")
        return
    draw(read_points(sys.stdin.read(), "standard input"), peers).savefig(args.out, format="png", dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0 done, 3 after a sentence."""
    parser = argparse.ArgumentParser(prog="python -m sqllm.plot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.png", help="the picture to write")
    parser.add_argument("--peers", type=Path, metavar="POINTS.json", help="points of others")
    parser.add_argument("--check", action="store_true", help="only see whether it can be drawn")
    args = parser.parse_args(arguments)
    try:
        _run(args)
        return 0
    except PlotError as error:
        message = str(error)
    except UnicodeDecodeError as error:
        message = f"{args.peers}: no UTF-8 ({error.reason})."
    except OSError as error:
        message = f"{error.filename}: {error.strerror}."
    print(f"sqllm.plot: {message}", file=sys.stderr)
    return HAS_COMPLAINED


if __name__ == "__main__":
    sys.exit(main())
