"""The ranking loss over the K hardest of some written sentences: `tagsds.losses.ranking` on a record's scores."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from tagsds.figures.canvas import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, Picture, panels
from tagsds.figures.example import Example
from tagsds.losses.ranking import hardest, triplet

MARGIN, KEEP, MOST = 0.2, 4, 12


def draw(example: Example) -> Figure:
    figure, (bars, curve) = panels(430, [1.15, 1])
    scores = torch.tensor([[score for _, score in example.kept[:MOST]]])
    true = torch.tensor([example.true])
    index, valid = hardest(scores, KEEP)
    chosen = scores.gather(1, index)
    loss = float(triplet(true, chosen, valid, MARGIN))

    kept = set(index[0].tolist())
    for place, score in enumerate(scores[0].tolist()):
        colour = PURPLE if place in kept else GREY
        bars.bar(place + 1, score, width=0.72, color=PALE[colour], edgecolor=colour)
        over = max(0.0, score - (example.true - MARGIN))
        if place in kept and over:
            bars.bar(place + 1, over, bottom=score - over, width=0.72, color=ORANGE, edgecolor=ORANGE)
            bars.text(place + 1, score - over - 0.03, f"{over:.2f}", ha="center", va="top", color=ORANGE, weight="bold", size=10)
    bars.axhline(example.true, color=GREEN, linewidth=1.6)
    bars.axhline(example.true - MARGIN, color=BLUE, linewidth=1.4, linestyle=(0, (5, 3)))
    end = scores.shape[1] + 0.5
    bars.text(end, example.true + 0.02, "s(I, T), the true caption", ha="right", color=GREEN, weight="bold")
    bars.text(end, example.true - MARGIN + 0.02, "s(I, T) − m", ha="right", color=BLUE, weight="bold")
    bars.set_xlim(0.4, end)
    bars.set_ylim(0, 1.08)
    bars.set_xticks(range(1, scores.shape[1] + 1))
    bars.set_xlabel("written sentences, the hardest first")
    bars.set_ylabel("score s(I, T̃)")
    bars.set_title(f"K = {KEEP}: loss = mean of the orange parts = {loss:.3f}")

    at = torch.linspace(0, 1, 201)
    for keep, colour, style in ((1, ORANGE, "-"), (KEEP, PURPLE, "--"), (scores.shape[1], BLUE, "-.")):
        index, valid = hardest(scores, keep)
        values = [float(triplet(value[None], scores.gather(1, index), valid, MARGIN)) for value in at]
        curve.plot(at, values, color=colour, linestyle=style, linewidth=1.8, label=f"K = {keep}")
    curve.axvline(example.true, color=GREEN, linewidth=1.2)
    curve.text(example.true + 0.01, curve.get_ylim()[1] * 0.9, "now", color=GREEN, ha="left")
    curve.set_xlabel("score of the true caption s(I, T)")
    curve.set_ylabel("loss")
    curve.set_xlim(0, 1)
    curve.set_ylim(0)
    curve.legend(loc="upper right", bbox_to_anchor=(0.88, 1.0), labelcolor=INK)
    curve.set_title("The fewer are kept, the harder they are")
    return figure


PICTURE = Picture(
    "hardest",
    "The ranking loss: bars are the scores of written sentences, the hardest first; of the four hardest, the part above the true "
    "caption's score minus the margin counts. Below, the loss falls as the true caption scores higher; it is larger for fewer and "
    "harder negatives.",
    draw,
)
