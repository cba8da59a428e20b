"""What one rank draws from: the captions and images of a partition, resident on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tagsds.data.pairs import Images, geometry_of
from tagsds.data.ragged import Ragged, positions_of


@dataclass
class Bank:
    """Captions and images with indices between them.

    tokens             Ragged int32, a row a caption: [CLS] pieces [SEP]
    spans              Ragged int32 [*, 2], a row a caption: (span number, position of one of its pieces in the caption's row)
    image_of_caption   int64 [captions]
    captions_of_image  Ragged int64, a row an image: its captions' numbers
    regions            Ragged float16 [*, D], a row an image
    boxes              float32 [sum regions, 4], x1 y1 x2 y2 in 0..1
    classes            float16 [sum regions, C] soft labels, or None
    texts, keys        the captions as written; the images' ids
    caption_ids        the captions' ids as the shards give them; COCO's annotation ids where the corpus was packed from COCO
    background_class   column 0 of the soft labels stands for background
    """

    tokens: Ragged
    spans: Ragged
    image_of_caption: Tensor
    captions_of_image: Ragged
    regions: Ragged
    boxes: Tensor
    classes: Tensor | None = None
    texts: Sequence[str] = field(default_factory=list)
    keys: Sequence[str] = field(default_factory=list)
    background_class: bool = False
    caption_ids: Sequence[str] = field(default_factory=list)

    @property
    def num_captions(self) -> int:
        return len(self.tokens)

    @property
    def num_images(self) -> int:
        return len(self.regions)

    @property
    def device(self) -> torch.device:
        return self.regions.values.device

    def text_table(self, captions: Tensor) -> Ragged:
        """Word pieces of the given captions (int64 [N]) as int64."""
        table = self.tokens.select(captions)
        return Ragged(table.values.long(), table.lengths)

    def hidden_text_table(self, captions: Tensor) -> Ragged:
        """`text_table` with the words hidden that `augment.drop_words` chooses; here none."""
        return self.text_table(captions)

    def image_table(self, images: Tensor) -> Images:
        """Regions of the given images (int64 [N]), float16 as stored: the model casts them."""
        flat = self.region_rows(images)
        return Images(Ragged(self.regions.values[flat.values], flat.lengths), geometry_of(self.boxes[flat.values]))

    def region_rows(self, images: Tensor) -> Ragged:
        """Positions of the given images' regions in `regions.values`, `boxes` and `classes`."""
        lengths = self.regions.lengths[images]
        return Ragged(positions_of(self.regions.offsets[images], lengths), lengths)

    def to(self, device: torch.device | str) -> Bank:
        return Bank(
            self.tokens.to(device),
            self.spans.to(device),
            self.image_of_caption.to(device),
            self.captions_of_image.to(device),
            self.regions.to(device),
            self.boxes.to(device),
            None if self.classes is None else self.classes.to(device),
            self.texts,
            self.keys,
            self.background_class,
            self.caption_ids,
        )

    def gib(self) -> float:
        """Memory of the tensors, GiB."""
        tensors = [self.tokens.values, self.spans.values, self.regions.values, self.boxes, self.classes]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None) / 2**30
