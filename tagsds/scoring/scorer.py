"""The one way to score pairs without gradient: mining, filtering and evaluation all go through here."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.kernels.linear import weights_ready_once
from tagsds.malloc import give_back_freed_memory
from tagsds.models.load import ensure_rank_head
from tagsds.models.uniter import Extent, Layout, UniterModel
from tagsds.scoring.protocol import PairScorer


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; outside the former mode, of each module by itself."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Scorer:
    """`scorer(pairs)` -> ranking logits float32 [P], in chunks of at most `max_tokens` tokens (None: by device), without dropout
    or gradient.

    Both tables are embedded once per call, the last layer is computed for [CLS] alone, and pairs are taken in order of
    length, so that a padded fallback pads next to nothing.

    dtype     autocast to it (bf16 mining); None keeps the model's own precision
    lockstep  int -> int: the number of chunks all ranks agree on. Under ZeRO-3 every forward is a collective, so ranks with
              fewer chunks forward one pair without using it; the engine provides it, others keep the default.
    """

    encodes_apart: ClassVar[bool] = False

    def __init__(
        self,
        model: UniterModel,
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
        scores = torch.empty(len(pairs), dtype=torch.float32, device=pairs.text_of_pair.device)
        chunks = self.chunks(pairs.lengths)
        wanted = self.lockstep(len(chunks))
        autocast = torch.autocast(scores.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)
        with without_dropout(self.model), autocast, weights_ready_once(self.model):
            table = self.model.embed(pairs.texts, pairs.images)
            for number in tqdm(range(wanted), desc="score", unit="chunk", disable=not progress, leave=False):
                mine = number < len(chunks)
                index, extent = chunks[number] if mine else (chunks[0][0][:1], Extent(*[chunks[0][1].shortest] * 3))
                chunk = pairs.subset(index)
                score = self.model.score(self.model(chunk, Layout.of(chunk).cls(), table, extent))
                if mine:
                    scores[index] = score
        return scores

    @torch.no_grad()
    def probe(self, pairs: Pairs) -> Tensor:
        """Scores of the encoder's probe, float32 [P], by which cascade mining drops pairs before `__call__` sees them. Both tables
        are embedded once and nothing is done in chunks: all ranks make the same calls."""
        device = pairs.text_of_pair.device
        autocast = torch.autocast(device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)
        with without_dropout(self.model), autocast:
            return self.model.probe_scores(pairs)

    def ready(self) -> str:
        """'rank', or 'itm' where only that head was trained; see `ensure_rank_head`."""
        return ensure_rank_head(self.model)

    def tokens_of_chunk(self, device: torch.device) -> int:
        """Most tokens of a chunk. Read when scoring, since an engine may move the model."""
        return self.max_tokens or (131072 if device.type == "cuda" else 16384)

    def chunks(self, lengths: Tensor) -> list[tuple[Tensor, Extent]]:
        """Pair numbers of each chunk and its extent, by length: neighbours are alike, for attention that pads; chunks of as many
        tokens each. The device is waited for once, not in each chunk."""
        if len(lengths) == 0:
            return []
        order = torch.argsort(lengths, stable=True)
        ascending = lengths[order].tolist()
        ends = list(accumulate(ascending))
        most, total = self.tokens_of_chunk(lengths.device), ends[-1]
        most = min(most, total // -(-total // most) + ascending[-1])
        chunks, start, taken = [], 0, 0
        while start < len(ends):
            stop = max(bisect_right(ends, taken + most), start + 1)
            extent = Extent(ends[stop - 1] - taken, ascending[stop - 1], ascending[start])
            chunks.append((order[start:stop], extent))
            start, taken = stop, ends[stop - 1]
        return chunks

    def matrix(
        self, bank: Bank, images: Tensor, captions: Tensor, progress: bool = True, block_images: int | None = None
    ) -> Tensor:
        """Every image (int64 [I]) with every caption (int64 [C]), `block_images` at a time (50): float32 [I, C]."""
        out = torch.empty(len(images), len(captions), device=bank.device)
        size = block_images or 50
        texts = bank.text_table(captions)
        rows = torch.arange(len(captions), device=bank.device)
        for start in tqdm(range(0, len(images), size), desc="score", unit=f"x{size} images", disable=not progress):
            block = images[start : start + size]
            columns = torch.arange(len(block), device=bank.device)
            pairs = Pairs(texts, bank.image_table(block), rows.repeat(len(block)), columns.repeat_interleave(len(rows)))
            out[start : start + len(block)] = self(pairs).view(len(block), len(captions))
            give_back_freed_memory()  # chunks of many sizes leave holes in what a process keeps for speed: GiB after minutes
        return out


def score_matrix(
    scorer: PairScorer, bank: Bank, images: Tensor, captions: Tensor, progress: bool = True, block_images: int | None = None
) -> Tensor:
    """Scores of every image (int64 [I]) with every caption (int64 [C]): float32 [I, C], exact.

    `block_images` bounds the memory; None leaves it to the scorer.
    """
    return scorer.matrix(bank, images, captions, progress, block_images)


def score_listed(
    scorer: PairScorer, bank: Bank, images: Tensor, captions: Tensor, progress: bool = True, block_pairs: int = 1 << 15
) -> Tensor:
    """Scores of listed pairs only, image images[p] with caption captions[p] (both int64 [P]): float32 [P].

    Neighbours in the list should share images: each block of pairs embeds its images and captions once.
    """
    parts = [torch.empty(0, device=bank.device)]
    blocks = list(zip(images.split(block_pairs), captions.split(block_pairs))) if len(images) else []
    for some_images, some_captions in tqdm(blocks, desc="score", unit=f"x{block_pairs} pairs", disable=not progress):
        image_rows, image_of_pair = torch.unique(some_images, return_inverse=True)
        text_rows, text_of_pair = torch.unique(some_captions, return_inverse=True)
        pairs = Pairs(bank.text_table(text_rows), bank.image_table(image_rows), text_of_pair, image_of_pair)
        parts.append(scorer(pairs))
    return torch.cat(parts)


def clock(device: torch.device) -> float:
    """Seconds, read when the device has done what it was given: differences are times of work, not of its queueing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
