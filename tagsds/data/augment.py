"""What a small corpus is stretched with: each micro-batch sees its images and captions a little changed.

The changes of a micro-batch are a function of (seed, step, slot): an image is changed in the same way for mining, writing and the
forward with a gradient of that micro-batch, and a resumed run sees the same. Validation and evaluation see the corpus as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Images, geometry_of
from tagsds.data.ragged import Ragged, positions_of
from tagsds.draw import WORD, Draw, random_bits, seed_of
from tagsds.errors import UserError

NOISE_ROWS = 4096  # vectors of noise of a micro-batch; a region takes one of them, chosen at random
MIRRORED = ("left", "right")


@dataclass
class AugmentConfig:
    """Changes of images and captions while training: group `augment` of a recipe. All are off in the published recipes."""

    feature_noise: float = 0.0
    """standard deviation of Gaussian noise on each number of a region's feature, as a share of the feature's root mean square"""
    drop_regions: float = 0.0
    """probability that a region is left out; an image keeps one at least"""
    mirror: bool = False
    """half of the images are mirrored: their boxes, and "left" and "right" in their captions. Features stay as they are, so use it
    where they hardly depend on the side (class vectors, pooled CNN features)"""
    drop_words: float = 0.0
    """probability that a word piece of a caption of the corpus is [MASK] in the fine-tuning's forward with a gradient; written
    sentences and mining see all words"""

    def check(self, group: str) -> None:
        for name in ("drop_regions", "drop_words"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{group}.{name}={getattr(self, name)} must be a probability below 1.")
        if self.feature_noise < 0:
            raise UserError(f"{group}.feature_noise={self.feature_noise} must not be negative.")

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return self != AugmentConfig()


@dataclass(frozen=True)
class WordIds:
    """Pieces of the tokenizer that augmentation needs: [MASK], `special` ones that stay, `left` and `right`, and whether each piece
    goes on with the word before it (bool [V])."""

    mask: int
    special: tuple[int, ...]
    left: int | None
    right: int | None
    continues: Tensor

    @staticmethod
    def of(tokenizer: Any, device: torch.device | str = "cpu") -> WordIds:
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        left, right = (pieces.index(word) if word in pieces else None for word in MIRRORED)
        continues = torch.tensor([piece.startswith("##") for piece in pieces], device=device)
        return WordIds(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), left, right, continues)


class AugmentedBank(Bank):
    """A bank whose tables show the changes of one micro-batch; nothing is copied but what a table holds."""

    def __init__(self, bank: Bank, config: AugmentConfig, words: WordIds, draw: Draw) -> None:
        super().__init__(**{field.name: getattr(bank, field.name) for field in fields(Bank)})
        self.config, self.words = config, words
        self.draw = draw

    def region_rows(self, images: Tensor) -> Ragged:
        rows = super().region_rows(images)
        if not self.config.drop_regions:
            return rows
        stays = self._chance("region", rows.values, self.config.drop_regions)
        owner = torch.repeat_interleave(torch.arange(len(images), device=rows.values.device), rows.lengths)
        left = torch.zeros_like(rows.lengths).index_add_(0, owner, stays.long())
        begin = rows.offsets[:-1][(left == 0) & (rows.lengths > 0)]
        stays[begin] = True  # the first, which a detector that sorts by confidence is surest of
        left = left.clamp(min=1).minimum(rows.lengths)
        return Ragged(rows.values[stays], left)

    def image_table(self, images: Tensor) -> Images:
        flat = self.region_rows(images)
        values, boxes = self.regions.values[flat.values], self.boxes[flat.values]
        if self.config.feature_noise:
            values = values.float()
            size = values.square().mean(dim=1, keepdim=True).sqrt() * self.config.feature_noise
            values = torch.addcmul(values, size, self._noise[self._bits("noise", flat.values) % NOISE_ROWS])
        if self.config.mirror:
            turned = torch.repeat_interleave(self._mirrored(images), flat.lengths)
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.where(turned[:, None], torch.stack([1 - x2, y1, 1 - x1, y2], dim=1), boxes)
        return Images(Ragged(values, flat.lengths), geometry_of(boxes))

    def text_table(self, captions: Tensor) -> Ragged:
        table = super().text_table(captions)
        left, right = self.words.left, self.words.right
        if not self.config.mirror or left is None or right is None:
            return table
        ids = table.values
        goes_on = torch.zeros_like(ids, dtype=torch.bool)
        goes_on[:-1] = self.words.continues.to(ids.device)[ids[1:]]  # "left" of "leftover" is no word
        turned = torch.repeat_interleave(self._mirrored(self.image_of_caption[captions]), table.lengths) & ~goes_on
        other = torch.where(ids == left, right, torch.where(ids == right, left, ids))
        return Ragged(torch.where(turned, other, ids), table.lengths)

    def hidden_text_table(self, captions: Tensor) -> Ragged:
        table = self.text_table(captions)
        if not self.config.drop_words:
            return table
        begin = self.tokens.offsets[captions]
        stays = self._chance("word", positions_of(begin, table.lengths), self.config.drop_words)
        special = torch.isin(table.values, torch.tensor(self.words.special, device=table.values.device))
        return Ragged(torch.where(stays | special, table.values, self.words.mask), table.lengths)

    def _mirrored(self, images: Tensor) -> Tensor:
        return self._chance("mirror", images, 0.5)

    def _chance(self, purpose: str, numbers: Tensor, p: float) -> Tensor:
        """bool: false with probability p, for each of the numbers alike whenever it is asked for."""
        return self._bits(purpose, numbers) >= int(p * 2**32)

    def _bits(self, purpose: str, numbers: Tensor) -> Tensor:
        seed = seed_of(self.draw.seed, self.draw.step, self.draw.slot, "augment", purpose) & WORD
        return random_bits(seed, numbers, torch.zeros_like(numbers))

    @cached_property
    def _noise(self) -> Tensor:
        """float32 [NOISE_ROWS, D]."""
        random = self.draw.generator(self.device, "feature noise")
        return torch.randn(NOISE_ROWS, self.regions.values.shape[1], generator=random, device=self.device)


class Augmentation:
    """`(bank, draw)` -> the bank as one micro-batch sees it; the bank itself where nothing is changed."""

    def __init__(self, config: AugmentConfig, tokenizer: Any, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.words = WordIds.of(tokenizer, device) if config.changes else None

    def __call__(self, bank: Bank, draw: Draw) -> Bank:
        return bank if self.words is None else AugmentedBank(bank, self.config, self.words, draw)
