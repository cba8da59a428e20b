"""Patches as regions: ViT, CLIP's vision tower, DINOv2 and their like.

The processor resizes a picture, and for some models cuts out its centre; a patch's box is where it lies in the whole picture.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from preprocess.extractors.vision import Vision
from tagsds.errors import UserError


def window(size: tuple[int, int], processor) -> tuple[float, float, float, float]:
    """What the model sees of a picture of (width, height): x1, y1, x2, y2 as fractions of the picture; outside 0..1 where it is
    padded. `processor` is the model's image processor."""
    width, height = float(size[0]), float(size[1])
    if processor.do_resize:
        wanted = processor.size
        shortest = wanted.get("shortest_edge")
        if shortest:
            scale = shortest / min(width, height)
            width, height = int(width * scale + 1e-9), int(height * scale + 1e-9)
        elif wanted.get("height") and wanted.get("width"):
            width, height = wanted["width"], wanted["height"]
        else:
            raise UserError(f"the image processor resizes to {dict(wanted)}; give one with shortest_edge, or height and width.")
    if getattr(processor, "do_center_crop", False):
        crop = processor.crop_size
        left, top = math.floor((width - crop["width"]) / 2), math.floor((height - crop["height"]) / 2)
        return left / width, top / height, (left + crop["width"]) / width, (top + crop["height"]) / height
    return 0.0, 0.0, 1.0, 1.0


def cells(length: int, most: int) -> list[tuple[int, int]]:
    """Patches [start, stop) of each of at most `most` cells along one side (0: no limit): as adaptive average pooling divides."""
    count = min(most, length) if most else length
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def boxes_of(rows: int, columns: int, pool: int, seen: tuple[float, float, float, float]) -> NDArray[np.float32]:
    """Boxes [cells, 4], fractions of the picture, clipped to it; row by row from the top left."""
    x1, y1, x2, y2 = seen
    width, height = (x2 - x1) / columns, (y2 - y1) / rows
    boxes = [
        (x1 + left * width, y1 + top * height, x1 + right * width, y1 + bottom * height)
        for top, bottom in cells(rows, pool)
        for left, right in cells(columns, pool)
    ]
    return np.array(boxes, dtype=np.float32).clip(0.0, 1.0)


def patch_size(vision: Vision) -> int:
    config = getattr(vision.config, "vision_config", vision.config)
    size = getattr(config, "patch_size", None)
    if not isinstance(size, int):
        raise UserError(f"--model {vision.name} has no patch_size in its config and so no patches; use a ViT, CLIP or DINOv2.")
    return size


def width_of(vision: Vision) -> int:
    config = getattr(vision.config, "vision_config", vision.config)
    return int(config.hidden_size)


@torch.no_grad()
def grid_features(vision: Vision, pixels: torch.Tensor, pool: int) -> tuple[torch.Tensor, int, int]:
    """Last hidden states of the patches, without class and register tokens, pooled to at most `pool` x `pool` cells.

    pixels float [B, 3, h, w] -> float32 [B, cells, D] on the CPU, rows and columns of patches before pooling.
    """
    rows, columns = (side // patch_size(vision) for side in pixels.shape[-2:])
    with torch.autocast(vision.device.type, dtype=torch.bfloat16, enabled=vision.dtype != torch.float32):
        states = vision.model(pixel_values=pixels.to(vision.device)).last_hidden_state.float()
    if states.dim() != 3 or states.shape[1] < rows * columns:
        raise UserError(
            f"--model {vision.name} gives states {list(states.shape[1:])} for {rows} x {columns} patches; "
            "use a ViT, CLIP or DINOv2, which keep one state a patch."
        )
    patches = states[:, -rows * columns :]
    if pool and (rows > pool or columns > pool):
        image = patches.mT.unflatten(-1, (rows, columns))
        patches = F.adaptive_avg_pool2d(image, (min(pool, rows), min(pool, columns))).flatten(2).mT
    return patches.cpu(), rows, columns
