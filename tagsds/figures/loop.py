"""One caption in TAGS-DC, as a trained encoder treats it (arXiv 2111.03349): mask, refill, filter, score, discriminate, correct."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tagsds.figures.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SIZE,
    WIDTH,
    Picture,
    arrow,
    box,
    boxed_words,
    sheet,
    width_of,
)
from tagsds.figures.example import Example

LEFT = 16.0
SHOWN = 4  # sentences of the ranking
DROPPED = {
    "annotated": "are captions of the image",
    "repeated": "were written before",
    "true_of_image": "have only words of its captions",
}


def draw(example: Example) -> Figure:
    figure, axes = sheet(596)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(example.picture))).convert("RGB"))
    side = 84.0
    axes.imshow(picture, extent=(LEFT, LEFT + side, 10 + side, 10), interpolation="nearest", aspect="auto", zorder=2)
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(596, 0)
    right = LEFT + side + 14
    axes.text(right, 20, "A true pair (I, T)", weight="bold", va="center")
    paragraph(axes, (right, 40), example.words, WIDTH - 12 - right)
    axes.text(right, 84, f"s(I, T) = {example.true:.2f}", va="center", color=GREEN, weight="bold")

    replaced = example.kept[0][0].split()[example.gap]
    begin = max(0, example.gap - 4)
    context = example.words[begin : example.gap]
    lead = (["…"] if begin else []) + context
    tail = example.words[example.gap + 1 : example.gap + 2]

    heading(axes, 112, "1", "mask a phrase (20 times)")
    boxed_words(axes, (LEFT + 22, 134), [*((word, INK) for word in lead), ("[MASK]", BLUE), *((word, INK) for word in tail)])

    heading(axes, 164, "2", "refill: the mlm head sees words and image")
    for row, (word, probability) in enumerate(example.guesses):
        y = 186 + 17 * row
        colour, face = (PURPLE, "bold") if word == replaced else (GREY, "normal")
        axes.text(LEFT + 100, y, word, va="center_baseline", ha="right", color=colour, weight=face)
        axes.barh(y, 190 * probability, left=LEFT + 108, height=11, color=colour)
        axes.text(LEFT + 114 + 190 * probability, y, f"{100 * probability:.0f} %", va="center_baseline", color=INK)

    heading(axes, 266, "3", f"filter the {example.written} sentences")
    for row, (name, (count, _)) in enumerate(example.dropped.items()):
        y = 288 + 17 * row
        axes.text(LEFT + 50, y, f"−{count}", va="center_baseline", ha="right", color=ORANGE, weight="bold")
        axes.text(LEFT + 58, y, DROPPED[name], va="center_baseline")
    axes.text(LEFT + 50, 339, f"{len(example.kept)}", va="center_baseline", ha="right", color=GREEN, weight="bold")
    axes.text(LEFT + 58, 339, "are left: probably false", va="center_baseline")

    heading(axes, 370, "4", "score; the hardest K go into the ranking loss")
    for row, (text, score) in enumerate(example.kept[:SHOWN]):
        y = 392 + 17 * row
        words = text.split()
        # a refilled piece may continue the word before it, so that there are fewer words
        changed = [at for at, (old, new) in enumerate(zip(example.words, words, strict=False)) if old != new] or [0]
        first = max(0, min(changed) - 2)
        short = ("… " if first else "") + " ".join(words[first : min(first + 4, max(changed) + 2)])
        axes.text(LEFT + 22, y, short, va="center_baseline", color=PURPLE if row == 0 else INK)
        axes.barh(y, 110 * score, left=LEFT + 196, height=11, color=PURPLE if row == 0 else GREY)
        axes.text(LEFT + 202 + 110 * score, y, f"{score:.2f}", va="center_baseline")

    heading(axes, 474, "5", "discriminate: replaced?  correct: what was it?")
    words_read(axes, 500, example)
    arrow(axes, (WIDTH - 22, 540), (WIDTH - 22, 178), BLUE)
    axes.text(WIDTH - 12, 360, "one encoder writes, judges and learns", rotation=90, va="center", ha="center", color=BLUE)
    return figure


def heading(axes: Axes, y: float, number: str, text: str) -> None:
    box(axes, (LEFT, y - 8), (16, 16), BLUE)
    axes.text(LEFT + 8, y, number, va="center_baseline", ha="center", weight="bold", color=BLUE)
    axes.text(LEFT + 22, y, text, va="center_baseline", weight="bold")


def paragraph(axes: Axes, at: tuple[float, float], words: list[str], width: float) -> None:
    """Words in lines of at most `width` points."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    for row, line in enumerate(lines):
        axes.text(at[0], at[1] + 15 * row, line, va="center", size=SIZE)


def words_read(axes: Axes, y: float, example: Example) -> None:
    """The last words of the hardest sentence, each with its suspicion above its place, and the suggestion under the worst."""
    shown = example.read[max(0, example.gap - 4) : example.gap + 2]
    x = LEFT + 22
    for word, suspicion, suggestion, certainty in shown:
        suspected = suspicion > 0.5
        colour, face = (ORANGE, "bold") if suspected else (INK, "normal")
        width = max(width_of(word), 24.0)
        middle = x + width / 2
        axes.bar(middle, -26 * suspicion, bottom=y + 22, width=12, color=ORANGE if suspected else GREY)
        axes.text(middle, y + 22 - 26 * suspicion - 7, f"{suspicion:.2f}", ha="center", va="center_baseline", size=10)
        axes.text(middle, y + 32, word, ha="center", va="center_baseline", color=colour, weight=face)
        if suspected:
            axes.text(middle, y + 56, suggestion, ha="center", va="center_baseline", color=GREEN, weight="bold")
            axes.text(middle, y + 70, f"{certainty:.2f}", ha="center", va="center_baseline", color=GREEN, size=10)
            arrow(axes, (middle, y + 38), (middle, y + 49), GREEN)
        x += width + 14


PICTURE = Picture(
    "loop",
    "One caption in TAGS-DC: a word is masked, the masked-word head refills it with the image in view, sentences that may be true "
    "are dropped, the others are scored, and of the hardest the encoder says which word was replaced and what stood there.",
    draw,
)
