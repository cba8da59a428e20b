"""Scores of a matcher, with the calls of `Scorer`: each side is encoded once, comparing them is cheap.

Shapes: I images, C captions, P pairs, F fragments (regions or words; 1 where one vector stands for all), E joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs, select_images
from tagsds.models.matchers.matcher import Encoded, Matcher
from tagsds.scoring.scorer import without_dropout

ROWS = 128  # images or captions encoded at a time
RESIDENT_IMAGES = 10_000  # of which the encodings are kept: 36 regions of 1024 floats are 1.4 GiB


class MatcherScorer:
    """`scorer(pairs)` -> similarities float32 [P]; `scorer.matrix(...)` -> float32 [I, C]; without dropout or gradient.

    max_tokens   most fragments of both sides together that are compared at a time, a pair counted with the widest of its
                 block (None: by device); a comparison of fragments needs up to F x E floats a pair
    dtype        autocast to it; None keeps the model's own precision
    lockstep     as of every scorer, for calls that are collectives under ZeRO-3; kept and not asked here: no run scores with a
                 matcher whose weights are partitioned (training compares in the objective, a validation scores whole weights)
    """

    encodes_apart: ClassVar[bool] = True

    def __init__(
        self,
        model: Matcher,
        max_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        lockstep: Callable[[int], int] = lambda chunks: chunks,
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.dtype = dtype
        self.lockstep = lockstep

    @torch.no_grad()
    def __call__(self, pairs: Pairs, progress: bool = False) -> Tensor:
        device = pairs.text_of_pair.device
        scores = torch.empty(len(pairs), dtype=torch.float32, device=device)
        if not len(pairs):
            return scores
        with self.settings(device):
            rows = torch.arange(len(pairs.texts), device=device).split(ROWS)
            captions = join([self.model.encode_captions(pairs.texts.select(part)) for part in rows])
            rows = torch.arange(len(pairs.images), device=device).split(ROWS)
            images = join([self.model.encode_images(select_images(pairs.images, part)) for part in rows])
            order = torch.argsort(pairs.lengths, stable=True)  # so that long captions widen few chunks
            size = max(1, self.most(device) // (images.vectors.shape[1] + captions.vectors.shape[1]))
            for index in tqdm(order.split(size), desc="score", unit="chunk", disable=not progress, leave=False):
                chunk = trim(images.select(pairs.image_of_pair[index])), trim(captions.select(pairs.text_of_pair[index]))
                scores[index] = self.model.compare_pairs(*chunk).float()
        return scores

    @torch.no_grad()
    def matrix(
        self, bank: Bank, images: Tensor, captions: Tensor, progress: bool = True, block_images: int | None = None
    ) -> Tensor:
        """Every image (int64 [I]) with every caption (int64 [C]): float32 [I, C].

        The encoded images stay, `block_images` of them at a time (RESIDENT_IMAGES); captions are encoded as they are
        needed, met with all of those images and dropped.
        """
        out = torch.empty(len(images), len(captions), dtype=torch.float32, device=bank.device)
        order = torch.argsort(bank.tokens.lengths[captions], stable=True)  # captions of one length need no padding
        start = 0
        with self.settings(bank.device):
            for resident in images.split(block_images or RESIDENT_IMAGES):
                encoded = [self.model.encode_images(bank.image_table(part)) for part in resident.split(ROWS)]
                for columns in tqdm(order.split(ROWS), desc="score", unit=f"x{ROWS} captions", disable=not progress):
                    texts = self.model.encode_captions(bank.text_table(captions[columns]))
                    out[start : start + len(resident), columns] = torch.cat([self.block(part, texts) for part in encoded])
                start += len(resident)
        return out

    def block(self, images: Encoded, captions: Encoded) -> Tensor:
        """float32 [I, C], in pieces of at most `max_tokens` fragments."""
        room = max(1, self.most(images.vectors.device) // (images.vectors.shape[1] + captions.vectors.shape[1]))
        wide = min(room, len(captions))
        tall = max(1, room // wide)
        rows = [
            torch.cat([self.model.compare(some, part).float() for part in slices(captions, wide)], dim=1)
            for some in slices(images, tall)
        ]
        return torch.cat(rows)

    def ready(self) -> str:
        """'similarity': a matcher has no head that could be untrained."""
        return "similarity"

    def most(self, device: torch.device) -> int:
        """Fragments compared at a time."""
        return self.max_tokens or (1 << 19 if device.type == "cuda" else 1 << 14)

    @contextmanager
    def settings(self, device: torch.device) -> Iterator[None]:
        """No dropout, and the precision asked for."""
        autocast = torch.autocast(device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)
        with without_dropout(self.model), autocast:
            yield


def slices(encoded: Encoded, size: int) -> Iterator[Encoded]:
    """`size` rows at a time, without a copy."""
    for start in range(0, len(encoded), size):
        yield Encoded(encoded.vectors[start : start + size], encoded.lengths[start : start + size])


def join(parts: list[Encoded]) -> Encoded:
    """One table from several: zeros are put behind the fragments of the narrower parts."""
    width = max(part.vectors.shape[1] for part in parts)
    vectors = [pad(part.vectors, (0, 0, 0, width - part.vectors.shape[1])) for part in parts]
    return Encoded(torch.cat(vectors), torch.cat([part.lengths for part in parts]))


def trim(encoded: Encoded) -> Encoded:
    """Without the columns that lie behind every row's length."""
    return Encoded(encoded.vectors[:, : int(encoded.lengths.max())], encoded.lengths)
