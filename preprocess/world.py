"""The embedded corpus: scenes of two to five coloured shapes, drawn by the project.

Everything is a function of (seed, split, index): no file is read and no state is kept, so any process can make
any image.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from preprocess.records import numpy_seed
from preprocess.world_captions import relations
from preprocess.world_grammar import CANVAS, COLOURS, KINDS, SIZES, Thing

RADIUS = {"small": (6.5, 8.5), "large": (13.0, 16.0)}  # pixels, from and to
GAP = 2.0  # pixels that bounding squares keep apart
SUPERSAMPLE = 4  # drawn larger and reduced, for smooth edges
CROP = 8  # a region is seen as CROP x CROP RGB
FEATURE_DIM = CROP * CROP * 3
REPEAT = 0.35  # probability that an object takes its colour, and its kind, from an earlier one
RGB = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (240, 220, 50),
    "purple": (150, 50, 170), "cyan": (60, 210, 220), "white": (250, 250, 250), "black": (15, 15, 15),
}  # fmt: skip
CLASS_NAMES = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]


def generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """Random numbers of one image for one purpose."""
    return np.random.Generator(np.random.PCG64(numpy_seed("world", seed, split, index, purpose)))


def make_scene(rng: np.random.Generator) -> list[Thing]:
    """Two to five things whose bounding squares do not touch, at least two of which stand in a clear relation."""
    while True:
        scene: list[Thing] = []
        for _ in range(int(rng.integers(2, 6))):
            thing = _place(scene, rng)
            if thing is None:
                break
            scene.append(thing)
        else:
            if any(relations(scene[0], other) for other in scene[1:]):
                return scene


def _place(scene: list[Thing], rng: np.random.Generator) -> Thing | None:
    """A thing at a free position, None where fifty tries find none."""
    kind, colour = str(rng.choice(KINDS)), str(rng.choice(COLOURS))
    if scene and rng.random() < REPEAT:
        kind = scene[int(rng.integers(len(scene)))].kind
    if scene and rng.random() < REPEAT:
        colour = scene[int(rng.integers(len(scene)))].colour
    size = str(rng.choice(SIZES))
    radius = float(rng.uniform(*RADIUS[size]))
    for _ in range(50):
        x, y = (float(v) for v in rng.uniform(radius + 1, CANVAS - radius - 1, size=2))
        if all(max(abs(x - t.x), abs(y - t.y)) > radius + t.radius + GAP for t in scene):
            return Thing(kind, colour, size, x, y, radius)
    return None


def draw(scene: list[Thing], rng: np.random.Generator) -> tuple[Image.Image, NDArray[np.int64]]:
    """The picture, and per thing its tight box x1, y1, x2, y2 in pixels, int64 [n, 4], x2 and y2 exclusive."""
    side = CANVAS * SUPERSAMPLE
    gray = int(rng.integers(115, 150))
    picture = Image.new("RGB", (CANVAS, CANVAS), (gray, gray, gray))
    boxes = []
    for thing in scene:
        mask = Image.new("L", (side, side), 0)
        _draw_shape(ImageDraw.Draw(mask), thing)
        mask = mask.resize((CANVAS, CANVAS), Image.Resampling.BOX)
        jitter = rng.integers(-10, 11, size=3)
        colour = tuple(int(np.clip(c + j, 0, 255)) for c, j in zip(RGB[thing.colour], jitter))
        picture.paste(Image.new("RGB", picture.size, colour), (0, 0), mask)
        rows, columns = np.nonzero(np.asarray(mask) > 63)  # a pixel counts from a quarter of its area on
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return picture, np.array(boxes, dtype=np.int64)


def _draw_shape(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    """Draw the outline of the kind, in supersampled pixels, filled with 255."""
    x, y, r = (value * SUPERSAMPLE for value in (thing.x, thing.y, thing.radius))
    if thing.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif thing.kind == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        pen.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), fill=0)
    else:
        pen.polygon([(x + r * dx, y + r * dy) for dx, dy in OUTLINES[thing.kind]], fill=255)


def _star() -> list[tuple[float, float]]:
    turns = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5) for i in range(10)]
    return [(length * math.sin(angle), -length * math.cos(angle)) for length, angle in turns]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 60 for i in range(60)]
    wave = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(math.sin(t) ** 3, -(w + 2.5) / 14.5) for t, w in zip(turns, wave)]


_ARM = 0.34  # half the width of the cross's arms
OUTLINES: dict[str, list[tuple[float, float]]] = {  # corners in units of the radius, y downwards
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)],
    "triangle": [(0, -0.95), (1, 0.85), (-1, 0.85)],
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "star": _star(),
    "heart": _heart(),
}  # fmt: skip


def features(picture: Image.Image, boxes: NDArray[np.int64]) -> NDArray[np.float32]:
    """The crop of each box as CROP x CROP RGB minus 0.5, flattened row by row: float32 [n, FEATURE_DIM], -0.5..0.5."""
    crops = [picture.crop(tuple(box)).resize((CROP, CROP), Image.Resampling.BILINEAR) for box in boxes.tolist()]
    return np.stack([np.asarray(crop, dtype=np.float32).reshape(-1) / 255 - 0.5 for crop in crops])


def png(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
