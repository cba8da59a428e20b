"""Cascade mining: a probe reads all random negatives, the whole encoder scores those that it ranks highest.

A small random sample of the dropped ones is scored as well. From it the probe learns of its own mistakes (trained on what it kept
alone, it would never see one), the log learns how many it makes, and a hard one in it is taken.

Shapes: B = true pairs, C = `count` random negatives of a row, M = those that are scored (kept, then the sample), K = hardest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.draw import Draw
from tagsds.losses.ranking import hardest
from tagsds.negatives.random import Hard, NegativesConfig, both_directions, draw_random
from tagsds.scoring.scorer import Scorer

# how many of a row's dropped negatives are scored; and how many of its kept ones, besides the hardest, the probe learns from
SAMPLE = 16


@dataclass
class Lesson:
    """What the probe learns from in one direction. index int64 [B, K + N]: the K hardest of each row, then others; weight float
    [B, N], how many candidates each of the others stands for."""

    index: Tensor
    weight: Tensor


@dataclass
class Narrowed:
    """One direction. index int64 [B, M]: image or caption numbers, the first `kept` of them chosen by the probe, the others a
    random sample of the `dropped`; scores float32 [B, M] of the whole encoder."""

    index: Tensor
    scores: Tensor
    kept: int
    dropped: int

    @property
    def each(self) -> float:
        """How many dropped candidates one of the sample stands for."""
        return self.dropped / max(1, self.index.shape[1] - self.kept)

    def hard(self, keep: int) -> Hard:
        """The `keep` of highest score among all that were scored."""
        at, valid = hardest(self.scores, keep)
        return Hard(self.index.gather(1, at), valid)

    def kept_of_top(self, keep: int) -> tuple[Tensor, Tensor]:
        """(hits, cases): `cases` = B * keep are the true hardest of all C, and the probe kept `hits` of them, by the sample.

        Each of the sample stands for `each` dropped ones. One is missed where the kept ones that score higher, and what the
        sample's higher ones stand for, are fewer than `keep`.
        """
        kept, sample = self.scores[:, : self.kept], self.scores[:, self.kept :]
        above = (kept[:, None, :] > sample[:, :, None]).sum(dim=2)
        above_too = (sample[:, None, :] > sample[:, :, None]).sum(dim=2) * self.each
        missed = ((above + above_too < keep).sum(dim=1) * self.each).clamp(max=keep).sum()
        cases = torch.tensor(float(keep * len(self.index)), device=self.scores.device)
        return cases - missed, cases

    def lesson(self, keep: int, generator: torch.Generator) -> Lesson:
        """The `keep` hardest, at most SAMPLE other kept ones by chance, and at most SAMPLE of the sample of the dropped."""
        top, _ = hardest(self.scores, keep)
        is_top = torch.zeros_like(self.scores, dtype=torch.bool).scatter_(1, top, True)
        chance = torch.rand(self.scores.shape, generator=generator, device=self.scores.device)[:, : self.kept]
        some = chance.masked_fill(is_top[:, : self.kept], -1.0).topk(min(SAMPLE, self.kept - keep), dim=1).indices
        last = min(self.kept + SAMPLE, self.index.shape[1])  # the sample is in random order
        sample = torch.arange(self.kept, last, device=top.device).expand(len(top), -1)
        others = torch.cat([some, sample], dim=1)
        weight = torch.full(others.shape, self.dropped / max(1, sample.shape[1]), device=top.device)
        weight[:, : some.shape[1]] = (self.kept - keep) / max(1, some.shape[1])
        return Lesson(self.index.gather(1, torch.cat([top, others], dim=1)), weight.masked_fill(is_top.gather(1, others), 0.0))


def narrow(probed: Tensor, kept: int, sample: int, generator: torch.Generator) -> Tensor:
    """Columns of candidates by the probe's scores (float [B, C]): the `kept` of highest score in the candidates' order, then at
    most `sample` of the others by chance: int64 [B, M]."""
    best = probed.topk(kept, dim=1).indices.sort(dim=1).values  # all kept: the very pairs of mining without a cascade
    chance = torch.rand(probed.shape, generator=generator, device=probed.device).scatter_(1, best, -1.0)
    return torch.cat([best, chance.topk(min(sample, probed.shape[1] - kept), dim=1).indices], dim=1)


def mine_cascaded(
    bank: Bank, captions: Tensor, config: NegativesConfig, scorer: Scorer, draw: Draw
) -> tuple[Narrowed, Narrowed]:
    """The candidates of `mine_random`, narrowed to `config.scored` a row and a sample, with scores: images of each caption (int64
    [B]), and captions of its image. In the first `config.cascade_after` steps the sample is everything that the probe drops: the
    negatives are those of `mine_random`."""
    images, others = draw_random(bank, captions, config.count, draw)
    probed = both_directions(bank, captions, images, others, scorer.probe)
    generator = draw.generator(bank.device, "cascade")
    sample = SAMPLE if draw.step >= config.cascade_after else config.count
    images, others = (
        index.gather(1, narrow(scores, config.scored, sample, generator))
        for index, scores in zip((images, others), probed, strict=True)
    )
    of_images, of_captions = both_directions(bank, captions, images, others, scorer)
    dropped = config.count - config.scored
    return Narrowed(images, of_images, config.scored, dropped), Narrowed(others, of_captions, config.scored, dropped)
