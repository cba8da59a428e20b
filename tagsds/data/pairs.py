"""The one form in which text and image meet: two tables and two index vectors.

A caption held against 400 images is one row of the text table and 400 rows of the image table; whatever can be computed
once per row (embedding, projection of the region features) is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.data.ragged import Ragged, positions_of


@dataclass
class Images:
    """A table of images. `regions` Ragged float [R, D]; `geometry` float [R, 7] as
    (x1, y1, x2, y2, w, h, w * h), fractions of the image; `masked` bool [R] or None: regions whose feature is hidden."""

    regions: Ragged
    geometry: Tensor
    masked: Tensor | None = None

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def lengths(self) -> Tensor:
        return self.regions.lengths


@dataclass
class Pairs:
    """`texts` Ragged int64 word pieces with [CLS] and [SEP]; `text_of_pair`, `image_of_pair` int64 [P]: rows of the tables."""

    texts: Ragged
    images: Images
    text_of_pair: Tensor
    image_of_pair: Tensor

    def __len__(self) -> int:
        return self.text_of_pair.numel()

    @property
    def lengths(self) -> Tensor:
        """Tokens of each pair, text and regions together: int64 [P]."""
        return self.texts.lengths[self.text_of_pair] + self.images.lengths[self.image_of_pair]

    def subset(self, index: Tensor) -> Pairs:
        """The same tables with only the pairs of `index` (int64 [Q]). Rows no pair uses are dropped by `compact`."""
        return Pairs(self.texts, self.images, self.text_of_pair[index], self.image_of_pair[index])

    def compact(self) -> Pairs:
        """Drop the table rows that no pair uses."""
        text_rows, text_of_pair = torch.unique(self.text_of_pair, return_inverse=True)
        image_rows, image_of_pair = torch.unique(self.image_of_pair, return_inverse=True)
        return Pairs(self.texts.select(text_rows), select_images(self.images, image_rows), text_of_pair, image_of_pair)


def select_images(images: Images, rows: Tensor) -> Images:
    """The given rows of an image table, in that order."""
    lengths = images.lengths[rows]
    flat = positions_of(images.regions.offsets[rows], lengths)
    masked = images.masked[flat] if images.masked is not None else None
    return Images(Ragged(images.regions.values[flat], lengths), images.geometry[flat], masked)


def geometry_of(boxes: Tensor) -> Tensor:
    """Boxes [R, 4] (x1, y1, x2, y2 in 0..1) -> [R, 7] with width, height and area behind (UNITER's box vector)."""
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    return torch.cat([boxes, width[:, None], height[:, None], (width * height)[:, None]], dim=1)
