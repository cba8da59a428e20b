"""What passes between the parts of an extractor: a picture ready for the model, and the regions the model made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pixels:
    """A picture as the image processor leaves it."""

    values: torch.Tensor  # float32 [3, h, w]
    mask: torch.Tensor | None  # [h, w], 1 where the picture is and 0 where it was padded; None where nothing was said
    size: tuple[int, int]  # of the original picture: width, height in pixels
    thumbnail: bytes | None = None  # JPEG


@dataclass(frozen=True)
class Regions:
    """n regions of one picture, width D, C classes; boxes are x1, y1, x2, y2 as fractions of the original picture."""

    features: NDArray[np.floating]  # [n, D]
    boxes: NDArray[np.float32]  # [n, 4], 0..1
    scores: NDArray[np.float32] | None = None  # [n]
    classes: NDArray[np.floating] | None = None  # [n, C], rows sum to 1


class Extractor(Protocol):
    """A model that turns pictures of one processed size into regions."""

    feature_dim: int
    class_names: list[str]

    def check(self, pixels: Pixels) -> str | None:
        """What of a processed picture does not suit the model, as the middle of a sentence; None if it does."""
        ...

    def __call__(self, batch: list[Pixels], values: torch.Tensor, mask: torch.Tensor | None) -> list[Regions]:
        """values float32 [B, 3, h, w] and mask [B, h, w] on the model's device -> regions of each of the B pictures."""
        ...
