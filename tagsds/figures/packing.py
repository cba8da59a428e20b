"""Padded rows against the packed stream, for real pairs: what a linear layer and an attention layer compute."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tagsds.figures.canvas import BLUE, GREY, ORANGE, Picture, panels
from tagsds.figures.example import Example


def draw(example: Example) -> Figure:
    pairs = np.array(example.pairs)
    totals = pairs.sum(axis=1)
    padded_tokens, packed_tokens = totals.size * int(totals.max()), int(totals.sum())
    padded_cells, packed_cells = totals.size * int(totals.max()) ** 2, int((totals**2).sum())
    figure, (rows, stream, square) = panels(600, [1.1, 0.32, 2.3])
    draw_rows(rows, pairs)
    rows.set_title(f"Padded to the longest pair: {padded_tokens} tokens")
    draw_stream(stream, pairs)
    stream.set_title(f"Packed, one behind the other: {packed_tokens} tokens ({percent(packed_tokens / padded_tokens)} %)")
    draw_attention(square, totals)
    square.set_title(f"Attention, packed: {packed_cells:,} cells of {padded_cells:,} ({percent(packed_cells / padded_cells)} %)")
    return figure


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def draw_rows(axes: Axes, pairs: np.ndarray) -> None:
    longest = int(pairs.sum(axis=1).max())
    for row, (words, regions) in enumerate(pairs.tolist()):
        tokens(axes, (0, row), words, BLUE)
        tokens(axes, (words, row), regions, ORANGE)
        for column in range(words + regions, longest):
            axes.add_patch(Rectangle((column, row), 1, 0.8, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0.6))
    axes.set_xlim(0, longest)
    axes.set_ylim(len(pairs), 0)
    axes.set_yticks(np.arange(len(pairs)) + 0.4, [f"pair {n + 1}" for n in range(len(pairs))])
    axes.tick_params(left=False)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="white") for colour in (BLUE, ORANGE)]
    handles.append(Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=GREY, hatch="////"))
    labels = ["word pieces", "regions", "padding"]
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.45, 0.0), ncols=3, columnspacing=1.2)


def tokens(axes: Axes, at: tuple[float, float], count: int, colour: str) -> None:
    for number in range(count):
        axes.add_patch(Rectangle((at[0] + number, at[1]), 1, 0.8, facecolor=colour, edgecolor="white", linewidth=0.6))


def draw_stream(axes: Axes, pairs: np.ndarray) -> None:
    start = 0
    for number, (words, regions) in enumerate(pairs.tolist()):
        axes.add_patch(Rectangle((start, 0), words, 0.6, facecolor=BLUE, linewidth=0))
        axes.add_patch(Rectangle((start + words, 0), regions, 0.6, facecolor=ORANGE, linewidth=0))
        axes.text(start + (words + regions) / 2, 0.95, str(number + 1), ha="center", va="center")
        start += words + regions
        axes.plot([start, start], [0, 0.7], color="white", linewidth=1.6)
    axes.set_xlim(0, start)
    axes.set_ylim(1.1, 0)
    axes.axis("off")


def draw_attention(axes: Axes, totals: np.ndarray) -> None:
    """Query by key: a block for each pair."""
    end, start = int(totals.sum()), 0
    for number, length in enumerate(totals.tolist()):
        axes.add_patch(Rectangle((start, start), length, length, facecolor=BLUE, edgecolor="white", linewidth=1))
        if length > 10:
            middle = start + length / 2
            axes.text(middle, middle, str(number + 1), ha="center", va="center", color="white", weight="bold")
        start += length
    axes.set_xlim(0, end)
    axes.set_ylim(end, 0)
    axes.set_aspect("equal")
    axes.set_xlabel("key, token of the stream")
    axes.set_ylabel("query")


PICTURE = Picture(
    "packing",
    "Eight pairs padded to the longest, with the padding hatched; the same pairs packed one behind the other into one stream; and "
    "the attention of the stream, a block for each pair on the diagonal and nothing elsewhere.",
    draw,
)
