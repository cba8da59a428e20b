"""A matcher's encodings of a corpus, made once and kept: a search then encodes the query alone."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.models.matchers.matcher import Encoded
from tagsds.scoring.matcher_scorer import ROWS, MatcherScorer


class Encodings:
    """Either side is encoded when it is first asked for. Shapes: I images, C captions of the bank."""

    def __init__(self, scorer: MatcherScorer, bank: Bank) -> None:
        self.scorer, self.bank = scorer, bank
        self._images: list[Encoded] = []
        self._captions: list[Encoded] = []

    @torch.no_grad()
    def of_sentence(self, texts: Ragged) -> Tensor:
        """Similarity of every image with one sentence, a table of one row: float32 [I]."""
        model, bank = self.scorer.model, self.bank
        with self.scorer.settings(bank.device):
            if not self._images:
                rows = torch.arange(bank.num_images, device=bank.device).split(ROWS)
                self._images = [model.encode_images(bank.image_table(part)) for part in rows]
            query = model.encode_captions(texts)
            return torch.cat([self.scorer.block(part, query).flatten() for part in self._images])

    @torch.no_grad()
    def of_image(self, images: Images) -> Tensor:
        """Similarity of one image, a table of one row, with every caption: float32 [C]."""
        model, bank = self.scorer.model, self.bank
        with self.scorer.settings(bank.device):
            if not self._captions:
                rows = torch.arange(bank.num_captions, device=bank.device).split(ROWS)
                self._captions = [model.encode_captions(bank.text_table(part)) for part in rows]
            query = model.encode_images(images)
            return torch.cat([self.scorer.block(query, part).flatten() for part in self._captions])
