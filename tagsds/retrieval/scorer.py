"""The one way to score pairs without gradient: mining, filtering and evaluation all go through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.models.uniter import Layout, UniterModel


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode outside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class Scorer:
    """`scorer(pairs)` -> ranking logits float32 [P], in chunks of at most `max_tokens` tokens (None: by device), without dropout
    or gradient.

    Both tables are embedded once per call, the last layer is computed for [CLS] alone, and pairs are taken in order of
    length, so that a padded fallback pads next to nothing.

    dtype     autocast to it (bf16 mining); None keeps the model's own precision
    lockstep  int -> int: the number of chunks all ranks agree on. Under ZeRO-3 every forward is a collective, so ranks with
              fewer chunks run empty-handed ones; the engine provides it, everyone else leaves it.
    """

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
        with without_dropout(self.model), autocast:
            table = self.model.embed(pairs.texts, pairs.images)
            for number in tqdm(range(wanted), desc="score", unit="chunk", disable=not progress, leave=False):
                mine = number < len(chunks)
                index = chunks[number] if mine else chunks[0][:1]
                chunk = pairs.subset(index)
                score = self.model.score(self.model(chunk, Layout.of(chunk).cls(), table))
                if mine:
                    scores[index] = score
        return scores

    def chunks(self, lengths: Tensor) -> list[Tensor]:
        """Pair numbers of each chunk, by length; a chunk of decent size ends where the length changes."""
        # a CPU is fastest while a chunk stays in its cache; asked here, since an engine moves the model after this is built
        most = self.max_tokens or (131072 if lengths.is_cuda else 6144)
        order = torch.argsort(lengths, stable=True)
        values, counts = torch.unique_consecutive(lengths[order], return_counts=True)
        cuts, taken, start, position = [], 0, 0, 0
        for length, count in zip(values.tolist(), counts.tolist()):
            while count:
                room = max((most - taken) // length, 0 if taken else 1)
                step = min(room, count)
                position, count, taken = position + step, count - step, taken + step * length
                if count or taken >= most // 4:
                    cuts.append(order[start:position])
                    start, taken = position, 0
        if start < len(order):
            cuts.append(order[start:])
        return cuts


def score_matrix(
    scorer: Scorer, bank: Bank, images: Tensor, captions: Tensor, progress: bool = True, block_images: int = 50
) -> Tensor:
    """Ranking logits of every image (int64 [I]) with every caption (int64 [C]): float32 [I, C], exact."""
    out = torch.empty(len(images), len(captions), device=bank.device)
    blocks = range(0, len(images), block_images)
    texts = bank.text_table(captions)
    rows = torch.arange(len(captions), device=bank.device)
    for start in tqdm(blocks, desc="score", unit=f"x{block_images} images", disable=not progress):
        block = images[start : start + block_images]
        columns = torch.arange(len(block), device=bank.device)
        pairs = Pairs(texts, bank.image_table(block), rows.repeat(len(block)), columns.repeat_interleave(len(rows)))
        out[start : start + len(block)] = scorer(pairs).view(len(block), len(captions))
    return out
