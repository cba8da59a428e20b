"""Plots as inline SVG whose colours are CSS variables, so that one drawing serves light and dark pages.

Matplotlib wants plain colours: each variable has a stand-in, which is replaced in the SVG text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tagsds.evaluators.section import Interval

SERIES = [f"#0a0b{number:02x}" for number in range(1, 9)]  # stand-ins of --s1 ... --s8
INK, FAINT = "#0a0b10", "#0a0b11"  # of --ink and --rule
_VARIABLES = {**{code: f"var(--s{n})" for n, code in enumerate(SERIES, 1)}, INK: "var(--ink)", FAINT: "var(--rule)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's own font, selectable
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
}
MOST_POINTS = 400  # of a curve; the others are averaged into them


def colour(number: int) -> int:
    """The CSS variable --s1 ... --s8 of the n-th series, n from 0."""
    return number % len(SERIES) + 1


def curves(series: Mapping[str, Mapping[int, float]], colours: Mapping[str, int], title: str) -> str:
    """Step -> value for some runs: as logged (pale) and smoothed. `colours`: run -> 1..8."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(3.7, 2.3)
        for run, values in series.items():
            steps = np.array(list(values), dtype=np.float64)
            heights = np.array(list(values.values()), dtype=np.float64)
            keep = np.isfinite(heights)
            steps, heights = thin(steps[keep], MOST_POINTS), thin(heights[keep], MOST_POINTS)
            code = SERIES[colours[run] - 1]
            if len(steps) > 20:
                axes.plot(steps, heights, color=code, linewidth=0.8, alpha=0.3)
                axes.plot(steps, smooth(heights), color=code, linewidth=1.6)
            else:
                axes.plot(steps, heights, color=code, linewidth=1.6, marker="o", markersize=3)
        axes.set_xlabel("optimiser step")
        return to_svg(figure, title)


def histogram(rows: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64], int]], label: str, title: str) -> str:
    """Share of each row's pairs a bin, %: rows of (name, edges [B + 1], counts [B], colour 1..8)."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(5.6, 2.5)
        for _, edges, counts, code in rows:
            share = 100 * counts / max(counts.sum(), 1)
            axes.stairs(share, edges, fill=True, color=SERIES[code - 1], alpha=0.18)
            axes.stairs(share, edges, color=SERIES[code - 1], linewidth=1.6)
        axes.set_xlabel(label)
        axes.set_ylabel("pairs, %")
        return to_svg(figure, title)


def bars(
    kinds: Sequence[str], rows: Mapping[str, Sequence[Interval | None]], colours: Mapping[str, int], title: str
) -> str:
    """Accuracies by kind of edit (groups) and run (bars), against 50 % by chance."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(11.5, 0.8 + 0.27 * len(kinds) * len(rows) + 0.14 * len(kinds))
        thick = 0.8 / max(len(rows), 1)
        for number, (run, values) in enumerate(rows.items()):
            for group, value in enumerate(values):
                if value is None:
                    continue
                middle, low, high = value
                place = group - 0.4 + thick * (number + 0.5)
                axes.barh(place, middle, thick * 0.86, color=SERIES[colours[run] - 1], alpha=0.85)
                axes.plot([low, high], [place, place], color=INK, linewidth=1)
                axes.text(101, place, f"{middle:.1f}", va="center", fontsize=8)
        axes.axvline(50, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 10))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("true caption above the edited one, % of pairs (dashed: chance)")
        return to_svg(figure, title)


def thin(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """[N] -> at most `most` values, each the mean of neighbours."""
    if len(values) <= most:
        return values
    return np.array([part.mean() for part in np.array_split(values, most)])


def smooth(values: NDArray[np.float64], part: float = 0.03) -> NDArray[np.float64]:
    """Centred Gaussian mean [N] -> [N], a standard deviation of `part` / 2 of the curve; it does not lag behind."""
    width = max(part / 2 * len(values), 1e-6)
    offsets = np.arange(-int(3 * width) - 1, int(3 * width) + 2)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    reach = len(offsets) // 2
    total = np.convolve(values, kernel)[reach : reach + len(values)]
    return total / np.convolve(np.ones_like(values), kernel)[reach : reach + len(values)]


def to_svg(figure: Figure, title: str) -> str:
    """An <svg> element without prologue, links and metadata."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # ids that differ between plots, and never between two reports
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", svg)  # half the size, nothing to be seen of it
    for code, variable in _VARIABLES.items():
        svg = svg.replace(code, variable)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches; 72 SVG units each."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, axes
