"""An image without a picture, drawn from its boxes and their classes: SVG for the eye, a sentence for who cannot see it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tagsds.data.samples import array_of
from tagsds.data.shard_files import AGAIN
from tagsds.errors import UserError
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.reporting.pictures import aspect_of, picture_in, samples_of
from tagsds.reporting.wording import sentence_of

__all__ = ["boxes_svg", "drawn_regions", "sentence_of"]

Drawn = tuple[NDArray[np.float32], list[str], float]  # boxes [n, 4], n class names, aspect
Place = tuple[float, float, float, float]  # x, y, width, height in units of the drawing

ASPECT = 4 / 3  # of an image whose size is not known
WIDTH = 200  # units of the drawing
FONT = 15  # units
MOST_BOXES = 64  # that are drawn, the largest; the sentence counts all
LABEL = 19  # height of a label, units
COLOURS = (
    "#1e6ad5", "#ac5619", "#0e7e46", "#af20df", "#806d0e", "#d31e5a",
    "#14788c", "#d71f1f", "#3c7c0e", "#6d55e7", "#c51ca9", "#0e7c6a",
)  # fmt: skip
"""White text has a contrast of 5.1 on each; on a white page each stands out with 5.1, on a dark one with 3.5."""
NARROW, BROAD = "fijlrtI.,:;'|!()[] -", "mwMW@%&"
FLAT = 1.5  # a soft label whose largest entry is below FLAT / classes names no class


def drawn_regions(folder: Path, keys: Iterable[str], splits_first: Iterable[str] = ()) -> dict[str, Drawn]:
    """Boxes, class names and aspect (width over height) of the given images, by key; largest box first.

    `boxes` float32 [n, 4]: x1, y1, x2, y2 as fractions of the image. A name is the most probable class without the background, and
    "" where the shards name no classes. A region without a class that stands for the whole image is left out. The aspect is that of
    the picture in the shards, ASPECT where they hold none. Images whose samples have no boxes.npy are left out, and those that
    the shards do not hold.

    UserError for damaged shards.
    """
    wanted = list(keys)
    if not wanted:
        return {}
    manifest = read_manifest(folder)
    found = {}
    for sample in samples_of(folder, wanted, splits_first):
        if "boxes.npy" in sample:
            key = sample["__key__"]
            where = f"{folder}: image {key}"
            boxes = array_of(sample, "boxes", where, 4).clip(0, 1)
            names = class_names(sample, manifest, where, len(boxes))
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            order = [int(i) for i in np.argsort(-area, kind="stable") if names[i] or area[i] < 0.999]
            found[key] = boxes[order], [names[i] for i in order], aspect_of(picture_in(sample)) or ASPECT
    return found


def class_names(sample: dict, manifest: Manifest, where: str, count: int) -> list[str]:
    """The name of each region's most probable class; "" where it has none."""
    names = manifest.class_names
    if "classes.npy" not in sample or len(names) != manifest.num_classes or not names:
        return [""] * count
    classes = array_of(sample, "classes", where, manifest.num_classes).astype(np.float32)
    if len(classes) != count:
        raise UserError(f"{where}: classes.npy has {len(classes)} rows for {count} boxes; {AGAIN}.")
    first = int(manifest.background_class)
    best = classes[:, first:].argmax(1) + first
    sure = classes.max(1) > FLAT / classes.shape[1] if classes.shape[1] > 1 else np.ones(count, bool)
    return [names[i].split(",")[0].strip() if known else "" for i, known in zip(best, sure, strict=True)]


def boxes_svg(boxes: ArrayLike, names: Sequence[str], aspect: float = ASPECT, standalone: bool = False) -> str:
    """An SVG drawing of an image's boxes with their class names, WIDTH units wide.

    boxes       [n, 4]: x1, y1, x2, y2 as fractions of the image
    names       n class names, "" for a region without one
    aspect      width over height of the image; held between 1/3 and 3
    standalone  as a file of its own (with namespace and size) in place of an element within HTML

    Boxes are drawn from large to small. Every class gets a label, further boxes of a class where one fits into the box. Labels
    never cover each other; one for which no room is left is omitted, and each box carries its name as a title too. The sentence
    of `sentence_of` is the drawing's title. Names are escaped.
    """
    fractions = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if len(fractions) != len(names):
        raise ValueError(f"{len(fractions)} boxes and {len(names)} names")
    height = round(WIDTH / min(max(aspect, 1 / 3), 3.0))
    scaled = fractions.clip(0, 1) * np.array([WIDTH, height, WIDTH, height])
    places = [(float(x1), float(y1), float(max(x2 - x1, 0)), float(max(y2 - y1, 0))) for x1, y1, x2, y2 in scaled]
    order = sorted(range(len(places)), key=lambda i: -places[i][2] * places[i][3])
    sentence = sentence_of([names[i] for i in order])
    order = order[:MOST_BOXES]
    colours = colours_of(names)
    namespace = f' xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"' if standalone else ""
    parts = [
        f'<svg{namespace} class="boxes" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(sentence)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="var(--page, #f6f7f9)"/>',
    ]
    for i in order:
        x, y, width, tall = places[i]
        colour = colours[names[i]]
        parts.append(
            f"<g><title>{escape(names[i] or 'region')}</title>"
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tall:.1f}" '
            f'fill="{colour}" fill-opacity=".1" stroke="{colour}" stroke-width="2"/></g>'
        )
    for i, text, (x, y, width, tall) in labels_of([places[i] for i in order], [names[i] for i in order], height):
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tall}" rx="3" fill="{colours[names[order[i]]]}"/>'
            f'<text x="{x + 4:.1f}" y="{y + 14:.1f}" font-size="{FONT}" font-family="system-ui, sans-serif" fill="#fff" '
            f'textLength="{width - 8:.1f}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        )
    if not order:
        parts.append(
            f'<text x="{WIDTH // 2}" y="{height // 2}" font-size="{FONT}" font-family="system-ui, sans-serif" text-anchor="middle" '
            'fill="var(--soft, #5b6676)">nothing detected</text>'
        )
    return "".join(parts) + "</svg>"


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for every class: the same in every drawing unless another class of the drawing has it already."""
    taken: dict[str, str] = {}
    for name in sorted(set(names)):
        start = hashlib.sha256(name.encode()).digest()[0] % len(COLOURS)
        turns = [COLOURS[(start + step) % len(COLOURS)] for step in range(len(COLOURS))]
        taken[name] = next((colour for colour in turns if colour not in taken.values()), turns[0])
    return taken


def labels_of(places: Sequence[Place], names: Sequence[str], height: int) -> list[tuple[int, str, Place]]:
    """Labels as (row of the box, text, place), none over another and none outside the drawing: one of each class first, then
    further boxes of a class that have room for one."""
    firsts = list(dict.fromkeys(names.index(name) for name in names if name))
    labels: list[tuple[int, str, Place]] = []
    for i in (*firsts, *(i for i in range(len(names)) if names[i] and i not in firsts)):
        text, width = fitted(names[i])
        if i not in firsts and (places[i][2] < width or places[i][3] < LABEL):
            continue
        spots = candidates(places[i], width, height, i in firsts)
        if (free := next((spot for spot in spots if not any(overlap(spot, other) for _, _, other in labels)), None)) is not None:
            labels.append((i, text, free))
    return labels


def candidates(box: Place, width: float, height: int, anywhere: bool) -> list[Place]:
    """Places for a label of this width, the best first: in the box's corners, above and below it (for a box that a label would
    cover: the other way round), then (`anywhere`) the rest of the drawing from near to far."""
    x, y, wide, tall = box
    right, low = x + wide - width, y + tall - LABEL
    inside = [(x, y), (right, y), (x, low), (right, low)]
    outside = [(x, y - LABEL), (x, y + tall), (right, y - LABEL), (right, y + tall)] if anywhere else []
    spots = outside + inside if wide < width or tall < 1.5 * LABEL else inside + outside
    if anywhere:
        grid = [(float(a), float(b)) for b in range(0, height - LABEL + 1, LABEL // 2) for a in range(0, int(WIDTH - width) + 1, 8)]
        spots += sorted(grid, key=lambda spot: (spot[0] - x) ** 2 + (spot[1] - y) ** 2)
    held = [(min(max(a, 0.0), WIDTH - width), min(max(b, 0.0), float(height - LABEL))) for a, b in spots]
    return [(a, b, width, float(LABEL)) for a, b in held]


def overlap(one: Place, other: Place) -> bool:
    """Whether two places share an area."""
    return (
        one[0] < other[0] + other[2] and other[0] < one[0] + one[2] and one[1] < other[1] + other[3] and other[1] < one[1] + one[3]
    )  # fmt: skip


def fitted(name: str) -> tuple[str, float]:
    """The name, cut where it is wider than half the drawing, and the width of its label in units."""
    text = name
    while label_width(text) > WIDTH * 0.6:
        text = f"{text.removesuffix('…')[:-1].rstrip()}…"
    return text, label_width(text)


def label_width(text: str) -> float:
    """Estimated from the letters; the text is drawn to exactly this length."""
    return 8 + FONT * sum(0.34 if c in NARROW else 0.86 if c in BROAD else 0.68 if c.isupper() else 0.56 for c in text)
