"""Random negatives of both directions: draw, score without gradient, keep the hardest (TAGS, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.builder import PairBuilder
from tagsds.data.pairs import Pairs
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.losses.ranking import hardest
from tagsds.scoring.scorer import Scorer
from tagsds.settings import above_zero, not_negative, one_of


@dataclass
class NegativesConfig:
    """How the negatives of t2i and i2t are drawn: group `negatives` of a recipe."""

    count: int = 399
    """random images of each caption, and random captions of each image, that are scored"""
    keep: int = 31
    """K: the hardest of them that enter the loss, and the hardest written sentences likewise"""
    shared: bool = False
    """take the other pairs of the micro-batch instead of `count` random ones: one score serves both directions"""
    dtype: str = "model"
    """model or bf16: precision of scores that only choose negatives"""
    cascade: float = 0.0
    """0: off. Else the share of the `count` random negatives that the whole encoder scores: those that a small probe of the
    embeddings, trained along, ranks highest. 0.34 makes mining about twice as fast"""
    cascade_after: int = 500
    """steps in which the whole encoder still scores all of them, while the probe learns"""

    def check(self, group: str) -> None:
        one_of(self, group, dtype=("model", "bf16"))
        above_zero(self, group, "count", "keep")
        not_negative(self, group, "cascade_after")
        if not 0 <= self.cascade <= 1:
            raise UserError(f"{group}.cascade={self.cascade} must be a share from 0 (off) to 1.")
        if self.cascade and self.scored < self.keep:
            raise UserError(
                f"{group}.cascade={self.cascade} leaves {self.scored} of {group}.count={self.count} negatives to be scored, fewer "
                f"than {group}.keep={self.keep}; raise the share or lower {group}.keep."
            )
        if self.cascade and self.shared:
            raise UserError(f"{group}.cascade narrows random negatives; set {group}.shared=false or {group}.cascade=0.")

    @property
    def scored(self) -> int:
        """How many of the `count` negatives of a row the cascade leaves to the whole encoder; all without it."""
        return math.ceil(self.cascade * self.count - 1e-9) if self.cascade else self.count


IMAGES_AT_ONCE = 512  # of a call of the scorer


@dataclass
class Hard:
    """Hardest negatives of B true pairs: image or caption numbers int64 [B, K], and which of them exist, bool [B, K]."""

    index: Tensor
    valid: Tensor

    @staticmethod
    def all(index: Tensor) -> Hard:
        """Every one of them exists."""
        return Hard(index, torch.ones_like(index, dtype=torch.bool))


def check_size(bank: Bank, count: int, folder: str) -> None:
    """A corpus must hold `count` other images, and captions of other images, for every image."""
    check_counts(bank.num_images, bank.num_captions, int(bank.captions_of_image.lengths.max()), count, folder)


def check_counts(images: int, captions: int, most: int, count: int, folder: str) -> None:
    """The same by numbers: `images` with `captions` in all, `most` of one image."""
    have = min(images - 1, captions - most)
    if have < count:
        raise UserError(
            f"{folder}: a pair needs {count} negatives but the corpus holds {have} other images or captions; "
            f"set negatives.count={have} or pack more images."
        )


def window_of_permutation(total: int, rows: int, count: int, generator: torch.Generator) -> Tensor:
    """int64 [rows, count]: each row a uniform draw without repeats from 0..total-1 (count <= total).

    The rows are neighbouring windows of one permutation, so the cost is one permutation whatever the number of rows.
    """
    if count > total:
        raise UserError(f"{count} negatives cannot be drawn from {total}; lower negatives.count.")
    permutation = torch.randperm(total, generator=generator, device=generator.device)
    start = torch.arange(rows, device=generator.device)[:, None] * count
    return permutation[(start + torch.arange(count, device=generator.device)) % total]


def draw_images(bank: Bank, own: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct images other than the own one: own int64 [B] -> int64 [B, count]."""
    drawn = window_of_permutation(bank.num_images, len(own), count + 1, generator)
    return _first_allowed(drawn, drawn != own[:, None], count)


def draw_captions(bank: Bank, own: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct captions of other images: own images int64 [B] -> caption numbers int64 [B, count]."""
    spare = int(bank.captions_of_image.lengths.max())
    drawn = window_of_permutation(bank.num_captions, len(own), count + spare, generator)
    return _first_allowed(drawn, bank.image_of_caption[drawn] != own[:, None], count)


def _first_allowed(drawn: Tensor, allowed: Tensor, count: int) -> Tensor:
    order = torch.argsort((~allowed).to(torch.uint8), dim=1, stable=True)
    return drawn.gather(1, order[:, :count])


def mine_random(
    bank: Bank, captions: Tensor, count: int, keep: int, scorer: Scorer, draw: Draw
) -> tuple[Hard, Hard]:
    """Hard images of each caption (t2i) and hard captions of its image (i2t), out of `count` random ones each."""
    images, others = draw_random(bank, captions, count, draw)
    return keep_hardest(bank, captions, Hard.all(images), Hard.all(others), keep, scorer)


def draw_random(bank: Bank, captions: Tensor, count: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """`count` random images for each caption (int64 [B]) and captions for its image: int64 [B, count] each."""
    own = bank.image_of_caption[captions]
    images = draw_images(bank, own, count, draw.generator(bank.device, "negative images"))
    return images, draw_captions(bank, own, count, draw.generator(bank.device, "negative captions"))


def keep_hardest(bank: Bank, captions: Tensor, images: Hard, others: Hard, keep: int, scorer: Scorer) -> tuple[Hard, Hard]:
    """Of images held against each caption (int64 [B]) and captions held against its image: the `keep` of highest score."""
    of_images, of_captions = both_directions(bank, captions, images.index, others.index, scorer)
    image_at, image_valid = hardest(of_images, keep, images.valid)
    caption_at, caption_valid = hardest(of_captions, keep, others.valid)
    return Hard(images.index.gather(1, image_at), image_valid), Hard(others.index.gather(1, caption_at), caption_valid)


def both_directions(
    bank: Bank, captions: Tensor, images: Tensor, others: Tensor, score: Callable[[Pairs], Tensor]
) -> tuple[Tensor, Tensor]:
    """Scores of images held against each caption (int64 [B], [B, M]) and of captions held against its image ([B, N]).

    Images come `IMAGES_AT_ONCE` to a call of `score`, so that memory does not grow with M: the features of one take 150 kB."""
    own = bank.image_of_caption[captions]
    of_images, of_captions = [], torch.empty(0)
    for number, some in enumerate(images.split(max(1, IMAGES_AT_ONCE // max(1, len(captions))), dim=1)):
        builder = PairBuilder(bank)
        t2i = builder.pairs(builder.captions(captions)[:, None].expand_as(some), some)
        i2t = builder.pairs(builder.captions(others), own[:, None].expand_as(others)) if number == 0 else None
        scores = score(builder.build())
        of_images.append(scores[t2i].view_as(some))
        if i2t is not None:
            of_captions = scores[i2t].view_as(others)
    return torch.cat(of_images, dim=1), of_captions


def mine_shared(bank: Bank, captions: Tensor, keep: int, scorer: Scorer) -> tuple[Hard, Hard]:
    """The other pairs of the micro-batch as negatives: B * B scores serve both directions (an option that trades the pool's
    width for speed; captions and images of the own image are left out)."""
    own = bank.image_of_caption[captions]
    size = len(captions)
    builder = PairBuilder(bank)
    rows = builder.captions(captions)
    builder.pairs(rows[:, None].expand(size, size), own[None, :].expand(size, size))
    scores = scorer(builder.build()).view(size, size)
    allowed = own[:, None] != own[None, :]
    distinct = torch.ones_like(allowed).triu(1).T & (own[:, None] == own[None, :])  # j < i holds the same image
    image_at, image_valid = hardest(scores, keep, allowed & ~distinct.any(1)[None, :])
    caption_at, caption_valid = hardest(scores.T, keep, allowed)
    return Hard(own[image_at], image_valid), Hard(captions[caption_at], caption_valid)
