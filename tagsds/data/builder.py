"""Collects pairs from several sources into one table of texts, one of images and their index vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged


class PairBuilder:
    """Add texts, then pairs of a text row and a bank image; `build` embeds every image once however often it occurs."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self._texts: list[Ragged] = []
        self._text_rows = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def texts(self, table: Ragged) -> Tensor:
        """Append rows to the text table; returns their row numbers, int64 [N]."""
        rows = torch.arange(self._text_rows, self._text_rows + len(table), device=table.values.device)
        self._texts.append(table)
        self._text_rows += len(table)
        return rows

    def captions(self, captions: Tensor, hides_words: bool = False) -> Tensor:
        """Append the bank's captions (any shape), each distinct one once; returns rows of the same shape. `hides_words`: as
        augmentation shows them (`Bank.hidden_text_table`)."""
        distinct, inverse = torch.unique(captions, return_inverse=True)
        table = self.bank.hidden_text_table(distinct) if hides_words else self.bank.text_table(distinct)
        return self.texts(table)[inverse]

    def pairs(self, text_rows: Tensor, images: Tensor) -> slice:
        """Append pairs (both of one shape, flattened); returns their place among all pairs."""
        self._pairs.append((text_rows.flatten(), images.flatten()))
        begin, self._count = self._count, self._count + text_rows.numel()
        return slice(begin, self._count)

    def build(self) -> Pairs:
        text_of_pair = torch.cat([text for text, _ in self._pairs])
        distinct, image_of_pair = torch.unique(torch.cat([image for _, image in self._pairs]), return_inverse=True)
        return Pairs(Ragged.cat(self._texts), self.bank.image_table(distinct), text_of_pair, image_of_pair)
