"""The rank in the corpus of a negative from a batch, from a random sample, or from an offline search (AOQ, arXiv 2003.03669)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tagsds.config import load_config
from tagsds.figures.canvas import BLUE, GREEN, GREY, ORANGE, Picture, panels
from tagsds.figures.example import Example

CAPTIONS = 566_435  # of COCO's training images in Karpathy's split


def share_of_hardest(sample: int, ranks: NDArray[np.float64], captions: int = CAPTIONS) -> NDArray[np.float64]:
    """Probability that the hardest of `sample` random captions is among the r hardest of the corpus: ranks [N] -> [N], 0..1."""
    return 1 - (1 - ranks / captions) ** sample


def draw(_: Example) -> Figure:
    matcher, encoder = load_config("vsrn-aoq-coco", []), load_config("tags-base-coco", [])
    batch, random = matcher.batch.pairs - 1, encoder.negatives.count
    first, last = matcher.offline.first, matcher.offline.last
    figure, (axes,) = panels(262, [1])
    ranks = np.geomspace(1, CAPTIONS, 400)
    lines = (
        (np.clip((ranks - first) / (last + 1 - first), 0, 1), ORANGE, "-", f"offline: ranks\n{first} to {last}"),
        (share_of_hardest(random, ranks), BLUE, "--", f"hardest of\n{random} random"),
        (share_of_hardest(batch, ranks), GREEN, "-.", f"hardest of a\nbatch of {batch + 1}"),
    )
    for values, colour, style, label in lines:
        axes.plot(ranks, 100 * values, color=colour, linestyle=style, linewidth=2, label=label)
        half = ranks[np.argmax(values >= 0.5)]
        axes.plot(half, 50, marker="o", color=colour, markersize=5)
    axes.axhline(50, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_xscale("log")
    axes.set_xlim(1, CAPTIONS)
    axes.set_ylim(0, 103)
    axes.legend(loc="upper left", labelcolor="linecolor", labelspacing=0.8)
    axes.set_yticks(range(0, 101, 25))
    axes.set_xticks([1, 10, 100, 1000, 10_000, 100_000], ["1", "10", "100", "1,000", "10,000", "100,000"])
    axes.set_xlabel(f"rank among COCO's {CAPTIONS:,} captions, the hardest first")
    axes.set_ylabel("draws up to this rank, %")
    return figure


PICTURE = Picture(
    "ranks",
    "Rank of a negative in the whole training set, as a cumulative share on a logarithmic axis: offline negatives come from ranks "
    "0 to 299; half of the hardest of 399 random ones lie behind rank 983, of the hardest of a batch of 128 behind rank 3,083.",
    draw,
)
