"""Boxes in pixels to boxes as fractions of the image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tagsds.errors import UserError

CLIP_PIXELS = 1.0  # a box may leave the image by this much, and is clipped


def fractions(boxes: NDArray, size: tuple[int, int], where: str) -> NDArray[np.float32]:
    """Pixel boxes [n, 4] -> fractions of (width, height), clipped where they leave the image by a pixel at most."""
    width, height = size
    limits = np.array([width, height, width, height], dtype=np.float64)
    outside = (boxes < -CLIP_PIXELS) | (boxes > limits + CLIP_PIXELS)
    if outside.any():
        row = int(np.argwhere(outside)[0][0])
        pixels = ", ".join(f"{value:g}" for value in boxes[row])
        raise UserError(
            f"{where}: box {row} ({pixels}) lies outside the image of {width} x {height} pixels; "
            "check that boxes and images belong together."
        )
    if (boxes[:, 2:] < boxes[:, :2] - CLIP_PIXELS).any():
        row = int(np.argwhere(boxes[:, 2:] < boxes[:, :2] - CLIP_PIXELS)[0][0])
        raise UserError(f"{where}: box {row} ends before it begins; boxes are x1, y1, x2, y2.")
    return (boxes.clip(0.0, limits) / limits).astype(np.float32)
