"""What the figures share: palette, canvas, boxes with words, and SVG files that repeat to the digit.

Lengths are points; a canvas is 400 points wide, so that text of 10 points is 10 pixels high in a column of 400 pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

from tagsds.figures.example import Example

WIDTH = 400.0
SIZE = 11.0  # of text
# Dark enough for text on white (contrast of 4.5 and more), and told apart by colour-blind readers (after Okabe and Ito).
INK, GREY, BLUE, ORANGE, GREEN, PURPLE = "#1a1a1a", "#5f5f5f", "#005a94", "#b34700", "#00694d", "#8a3d6b"
PALE = {INK: "#f2f2f2", GREY: "#e6e6e6", BLUE: "#dcebf6", ORANGE: "#fdebe0", GREEN: "#d8efe7", PURPLE: "#f3e1ea"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",  # the same picture where the font is missing
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": SIZE,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "mathtext.fontset": "dejavusans",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: name of its file, text alternative, and what draws it."""

    name: str
    alt: str
    draw: Callable[[Example], Figure]


def panels(height: float, rows: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A canvas of `height` points with plots below each other, of these relative heights."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout=layout, facecolor="white")
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=list(rows))[:, 0]
    return figure, list(axes)


def sheet(height: float) -> tuple[Figure, Axes]:
    """A canvas of `height` points to draw on freely: x from 0 to WIDTH, y from 0 at the top to `height`."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def width_of(text: str, size: float = SIZE, bold: bool = False) -> float:
    """Of a line of text, points."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")  # type: ignore[arg-type]
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().width) if text.strip() else 0.0


def box(axes: Axes, at: tuple[float, float], size: tuple[float, float], colour: str, fill: bool = True) -> None:
    """A rounded box; `at` is its upper left corner."""
    style = "round,pad=0,rounding_size=3"
    pale = PALE[colour] if fill else "white"
    axes.add_patch(FancyBboxPatch(at, *size, boxstyle=style, facecolor=pale, edgecolor=colour, linewidth=1))


def boxed_words(axes: Axes, at: tuple[float, float], words: Sequence[tuple[str, str]], size: float = SIZE) -> list[float]:
    """Words in a line, each (text, colour) in a box of its own if the colour is not INK. Returns their middles; `at` is the left
    end of the line's middle."""
    x, y = at
    middles = []
    for text, colour in words:
        width = width_of(text, size)
        if colour != INK:
            box(axes, (x, y - 0.85 * size), (width + 8, 1.7 * size), colour)
        edge = 4 if colour != INK else 0
        axes.text(x + edge, y, text, va="center_baseline", size=size, color=colour)
        middles.append(x + edge + width / 2)
        x += width + 2 * edge + 0.45 * size
    return middles


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY, bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"})


def svg_of(picture: Picture, example: Example) -> str:
    """The file's text, the same for the same example and version of matplotlib; its alternative text stands in it, too."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": picture.name}):
        picture.draw(example).savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(?<!scale\()-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), svg)  # half the size
    svg = re.sub(r"\n\s+", "\n", svg)
    title = f' role="img"><title>{escape(picture.alt)}</title>'
    return re.sub(r"(<svg[^>]*)>", lambda found: found[1] + title, svg, count=1).strip() + "\n"
