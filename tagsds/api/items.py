"""What goes into a retriever and what comes out: images as keys, pictures or region features, and hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tagsds.api.pictures import PictureReader, is_picture
from tagsds.data.bank import Bank
from tagsds.data.pairs import Images, geometry_of
from tagsds.data.ragged import Ragged
from tagsds.errors import UserError
from tagsds.evaluators.pairs_file import KeyIndex
from tagsds.formats.manifest import Manifest

SLACK = 1e-4  # by which a box may leave 0..1, by rounding


class Regions(NamedTuple):
    """An image as its regions, n > 0 of them, as arrays or tensors.

    features   [n, D], D = the width of the corpus's features; taken as float16, as shards hold them
    boxes      [n, 4], x1, y1, x2, y2 as fractions of the image, 0..1; None: every region has the whole image as its box
    """

    features: Any
    boxes: Any = None


ImageLike = str | Path | Image.Image | Regions | tuple[Any, Any]
ONE = (str, Path, Image.Image, tuple)  # what an image may be


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[Any]:
    """One image or several as a list. A tuple is one image (features, boxes) unless it holds images."""
    several = isinstance(images, tuple) and not isinstance(images, Regions) and all(isinstance(one, ONE) for one in images)
    return [images] if isinstance(images, ONE) and not several else list(images)  # type: ignore[arg-type, list-item]


@dataclass(frozen=True)
class Hit:
    """One result of a search.

    key       key of the image; of a caption: of the image it was written for
    score     as of `Retriever.score`
    number    of the image in the split, or of the caption: what `among` takes
    caption   the caption that was found; None where an image was
    """

    key: str
    score: float
    number: int
    caption: str | None = None


@dataclass
class Gallery:
    """Finds the regions of images. `bank` None: there is no corpus, and images come as regions alone; `name` of the corpus and
    split, for messages; `reader` of pictures."""

    bank: Bank | None
    name: str
    width: int
    device: torch.device
    reader: PictureReader

    def __post_init__(self) -> None:
        self.index = KeyIndex(list(self.bank.keys) if self.bank is not None else [])

    @property
    def manifest(self) -> Manifest | None:
        """Of the corpus."""
        return self.reader.manifest

    def row(self, key: str) -> int:
        """Number of the image with this key or file name."""
        if self.bank is None:
            raise UserError(f"image '{key[:80]}' is named by its key, and no corpus was loaded; give load() the folder of one.")
        row = self.index.find(key)
        if row is None:
            raise UserError(f"image '{key[:80]}' is not in {self.name}; give a key of it, a picture, or another split.")
        return row

    def regions(self, image: ImageLike) -> tuple[Tensor, Tensor]:
        """float16 [n, D] and boxes float32 [n, 4], on the device."""
        if is_picture(image) and not (isinstance(image, str) and image in self.index):
            return self.reader(image)  # type: ignore[arg-type]
        if isinstance(image, str):
            row, bank = self.row(image), self.bank
            assert bank is not None
            begin, end = int(bank.regions.offsets[row]), int(bank.regions.offsets[row + 1])
            return bank.regions.values[begin:end], bank.boxes[begin:end]
        if not isinstance(image, tuple) or len(image) != 2:
            raise UserError(
                f"an image is a key, a picture or Regions(features, boxes), not {type(image).__name__}; see tagsds.Regions."
            )
        features = array_of(image[0], "features", self.width).to(self.device)
        if image[1] is None:
            boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(features), 4)
        else:
            boxes = array_of(image[1], "boxes", 4)
            if len(boxes) != len(features):
                raise UserError(f"the image has {len(boxes)} boxes for {len(features)} features; give a box for each region.")
            if not -SLACK <= float(boxes.min()) <= float(boxes.max()) <= 1 + SLACK:
                raise UserError("a box lies outside 0..1; divide x by the width of the image and y by its height.")
        return features.half(), boxes.to(self.device)

    def table(self, images: Sequence[ImageLike]) -> Images:
        """The images as rows of one table."""
        found = [self.regions(image) for image in images]
        regions = Ragged.from_rows([features for features, _ in found]).to(self.device)
        return Images(regions, geometry_of(torch.cat([boxes for _, boxes in found])))

    def captions(self, image: ImageLike) -> list[Tensor]:
        """Word pieces of the captions that the corpus has of an image: int64 rows; none for regions and pictures."""
        if self.bank is None or not isinstance(image, str) or (is_picture(image) and image not in self.index):
            return []
        return [self.bank.tokens[int(number)].long() for number in self.bank.captions_of_image[self.row(image)]]


def array_of(values: Any, name: str, width: int) -> Tensor:
    """float32 [n > 0, width] of finite numbers. UserError otherwise."""
    try:
        array = torch.as_tensor(values).float()
    except Exception as error:  # of whatever a user hands in: TypeError, ValueError, RuntimeError
        raise UserError(f"the {name} of an image are no array of numbers; give [n, {width}].") from error
    if array.ndim != 2 or array.shape[1] != width or len(array) == 0:
        raise UserError(f"the {name} of an image have shape {list(array.shape)}, not [n > 0, {width}]; give a row a region.")
    if not bool(array.isfinite().all()) or (name == "features" and not bool(array.half().isfinite().all())):
        raise UserError(f"the {name} of an image hold NaN, infinity or what float16 cannot hold; extract them again.")
    return array
