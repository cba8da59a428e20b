"""What holds a small encoder back: the figure of docs/results/limits.md, from the rows of a file in benchmarks/.

    python -m tests.bench.limits docs/results/limits.svg

The file holds {"curve": rows of one run at several steps, "images": rows by the number of training images, "changes": rows of
runs that differ from the recipe in one thing}; a row has `train` and `dev`, rsum over the first 300 images of the split.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tagsds.figures.canvas import BLUE, GREY, ORANGE, Picture, panels, svg_of
from tagsds.figures.example import Example

ROWS = Path(__file__).resolve().parents[2] / "benchmarks" / "2026-11-22-limits.json"
NEAR = 5.0  # points of rsum over 300 images: less tells two runs apart by chance alone
ALT = (
    "Three plots of rsum on 300 images of train and of dev. By steps both rise to the end of the recipe; by the number of training "
    "images dev rises and train falls; of runs that differ in one thing none has more than three points more on dev."
)


def lines(axes: Axes, x: list[float], rows: list[dict[str, Any]]) -> None:
    """Train and dev over x, labelled at their ends."""
    for split, colour, style in (("train", ORANGE, "--"), ("dev", BLUE, "-")):
        values = [row[split] for row in rows]
        axes.plot(x, values, color=colour, linestyle=style, marker="o", markersize=3)
        axes.annotate(split, (x[-1], values[-1]), xytext=(5, 0), textcoords="offset points", color=colour, va="center")
    axes.set_ylabel("rsum")
    axes.set_xscale("log")
    axes.set_xlim(right=x[-1] * 1.3)
    axes.minorticks_off()


def draw_rows(found: dict[str, Any]) -> Figure:
    changes = found["changes"]
    figure, (steps, images, single) = panels(270 + 17 * len(changes), [3, 3, 0.45 * len(changes)])
    at = [row["step"] for row in found["curve"]]
    lines(steps, at, found["curve"])
    steps.set_xticks(at, [f"{step:,}" for step in at])
    steps.set_title("steps of the recipe")
    counts = [row["images"] for row in found["images"]]
    lines(images, counts, found["images"])
    images.set_xticks(counts, [f"{count:,}" for count in counts])
    images.set_title("training images, pre-training too")
    own = changes[0]["dev"]
    single.axvspan(own - NEAR, own + NEAR, color=GREY, alpha=0.15, linewidth=0)
    for y, row in enumerate(changes):
        single.plot(row["dev"], y, marker="o", color=BLUE, markersize=5)
    single.set_yticks(range(len(changes)), [row["change"] for row in changes])
    single.set_ylim(len(changes) - 0.5, -0.5)
    single.set_xlabel("rsum on dev; grey: within 5 of the recipe")
    single.set_title("one change at a time")
    return figure


def svg(rows: Path = ROWS) -> str:
    """The picture's file."""
    found = json.loads(rows.read_text())
    return svg_of(Picture("limits", ALT, lambda _: draw_rows(found)), Example.load(ROWS.parents[1] / "docs/pictures/example.json"))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(svg())
