"""Draw the benchmark's bars; run inside the environment that holds matplotlib.

usage: chart.py OUT.png < CHARTS.json     what tables.chart makes, a list of it
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    charts = json.load(sys.stdin)
    figure, axes = plt.subplots(len(charts), 2, figsize=(11, 3.2 * len(charts)), squeeze=False)
    for row, chart in zip(axes, charts, strict=True):
        for i, axis in enumerate(row):
            bars = chart["bars"][::-1]
            colours = ["#1f5fa8" if ours else "#b8b8b8" for _, ours, *_ in bars]
            drawn = axis.barh([bar[0] for bar in bars], [bar[2 + i] for bar in bars], color=colours)
            axis.bar_label(drawn, fmt="%.0f", padding=3)
            axis.set_title(f"{chart['title']}\n{chart['cases'][i]}, tok/s", fontsize=10)
            axis.margins(x=0.12)
            axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
