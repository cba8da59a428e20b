"""Kind `grid`: the patches of a plain vision transformer are the regions (ViT, CLIP's vision tower, DINOv2).

Three frames, all (width, height): the original picture; the picture after resizing; the crop of it that the model sees. A patch
is a square of the crop. Its box is that square moved by the crop's corner and divided by the resized size.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel

from tagsds.errors import UserError
from tagsds.vision.checkpoint import Checkpoint
from tagsds.vision.regions import Pixels, Regions


class GridExtractor:
    """Last hidden states of the patches, averaged over windows where `pool` says so; without [CLS] and register tokens."""

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel, processor: Any, pool: int | None) -> None:
        self.where = str(checkpoint.processor_file)
        self.folder, self.processor, self.pool = checkpoint.folder, processor, pool
        self.tower = getattr(model, "vision_model", model)
        config = getattr(model.config, "vision_config", model.config)
        self.patch = _pair(getattr(config, "patch_size", None))
        if self.patch is None:
            raise UserError(
                f"{self.folder / 'config.json'}: a {model.config.model_type} model has no patches of one size; "
                "kind grid takes ViT, CLIP and DINOv2."
            )
        self.prefixes = {0, 1, 1 + int(getattr(config, "num_register_tokens", 0) or 0)}  # tokens in front of the patches
        # a tower that could interpolate its positions does so on demand only: other sizes are refused rather than guessed
        fixed = "interpolate_pos_encoding" in inspect.signature(self.tower.forward).parameters
        self.size = _pair(getattr(config, "image_size", None)) if fixed else None
        self.feature_dim = int(config.hidden_size)
        self.class_names: list[str] = []
        self._resized: dict[tuple[int, int], tuple[int, int]] = {}

    def check(self, pixels: Pixels) -> str | None:
        """The crop has to have the model's size, and to lie in the resized picture."""
        height, width = pixels.values.shape[-2:]
        if self.size is not None and (height, width) != self.size:
            return f"makes {width} x {height} pixels of it where the model takes {self.size[1]} x {self.size[0]}"
        resized = self._resized_size(pixels.size)
        if width > resized[0] or height > resized[1]:
            return f"pads its {resized[0]} x {resized[1]} pixels to {width} x {height}, so that some patches show nothing"
        if min(height // self.patch[0], width // self.patch[1]) < 1:
            return f"makes {width} x {height} pixels of it, less than one patch"
        return None

    def __call__(self, batch: list[Pixels], values: torch.Tensor, mask: torch.Tensor | None) -> list[Regions]:
        """See regions.Extractor; every picture of the batch has the same grid."""
        hidden = self.tower(pixel_values=values).last_hidden_state  # [B, tokens, D]
        rows, columns = values.shape[-2] // self.patch[0], values.shape[-1] // self.patch[1]
        before = hidden.shape[1] - rows * columns if hidden.ndim == 3 else -1
        if before not in self.prefixes:
            raise UserError(
                f"{self.folder}: the model's output has shape {list(hidden.shape)} for {rows} x {columns} patches; "
                "kind grid takes ViT, CLIP and DINOv2."
            )
        patches = hidden[:, before:].float()
        shape = (min(rows, self.pool or rows), min(columns, self.pool or columns))
        if shape != (rows, columns):
            plane = patches.transpose(1, 2).unflatten(2, (rows, columns))  # [B, D, rows, columns]
            patches = functional.adaptive_avg_pool2d(plane, shape).flatten(2).transpose(1, 2)
        cells = windows(rows, columns, shape) * np.array([*self.patch[::-1], *self.patch[::-1]])  # pixels of the crop
        crop = (values.shape[-1], values.shape[-2])
        features = patches.cpu().numpy()
        return [
            Regions(features[i], boxes_of_cells(cells, crop, self._resized_size(pixels.size))) for i, pixels in enumerate(batch)
        ]

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels that the processor scales a picture of `size` to, before it crops; asked once a size."""
        if size not in self._resized:
            blank = np.zeros((size[1], size[0], 3), dtype=np.uint8)
            steps = {"do_center_crop": False, "do_pad": False, "do_rescale": False, "do_normalize": False}
            steps = {name: value for name, value in steps.items() if hasattr(self.processor, name)}
            shape = np.asarray(self.processor(images=blank, **steps)["pixel_values"][0]).shape
            self._resized[size] = (shape[-1], shape[-2])
        return self._resized[size]


def windows(rows: int, columns: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Cells of adaptive average pooling as x1, y1, x2, y2 in patches, row by row: [cells, 4]. Where the grid is no multiple
    of the cells, neighbouring cells share patches."""

    def edges(length: int, count: int) -> list[tuple[int, int]]:
        return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]

    return np.array([(x1, y1, x2, y2) for y1, y2 in edges(rows, shape[0]) for x1, x2 in edges(columns, shape[1])], dtype=np.float64)


def boxes_of_cells(cells: NDArray, crop: tuple[int, int], resized: tuple[int, int]) -> NDArray[np.float32]:
    """Pixels of a centred crop [n, 4] -> fractions of the original picture. Sizes are (width, height) in pixels; the corner
    is rounded down, as transformers.image_transforms.center_crop does."""
    corner = [(resized[axis] - crop[axis]) // 2 for axis in (0, 1)]
    return ((cells + np.array([*corner, *corner])) / np.array([*resized, *resized])).clip(0.0, 1.0).astype(np.float32)


def _pair(value: Any) -> Any:
    """(height, width) of a number or a pair; None where there is none."""
    if isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list | tuple) and len(value) == 2 else None
