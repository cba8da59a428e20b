"""Offline hard negatives: what `tagsds-mine` found in the whole training set, and draws from it (AOQ, arXiv 2003.03669).

Shapes: I = images, C = captions of the split; Kc = captions kept of an image, Ki = images kept of a caption; B = true pairs.
Rank = column of a row of candidates, 0 = hardest. An image goes with five captions, so caption rank n goes with image rank n // 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.formats.candidates import Candidates
from tagsds.losses.quintuplet import QuintupletConfig
from tagsds.negatives.random import Hard, NegativesConfig, keep_hardest
from tagsds.scoring.scorer import Scorer
from tagsds.settings import above_zero, not_negative

CAPTIONS_PER_IMAGE = 5


@dataclass
class OfflineConfig:
    """Hard negatives that tagsds-mine found in the whole split: group `offline` of a recipe."""

    candidates: str = ""
    """a folder of tagsds-mine"""
    first: int = 0
    """first rank to draw from, 0 = hardest; images are drawn from ranks first // 5 to last // 5"""
    last: int = 299
    """last rank to draw from, itself included"""
    replace_random: bool = False
    """draw the negatives of t2i and i2t from the candidates in place of random ones"""
    score: bool = True
    """draw negatives.count and keep the hardest; false: draw negatives.keep and score none"""
    remine_every: int = 0
    """steps after which candidates are found anew with the current weights; 0 = never. A matcher searches the whole split, the
    encoder re-orders the first `pool`"""
    pool: int = 64
    """hardest candidates of each image and caption that are ordered anew; the ranks behind stay"""

    def check(self, group: str) -> None:
        not_negative(self, group, "first", "remine_every")
        above_zero(self, group, "pool")
        if self.last < self.first:
            raise UserError(f"{group}.last={self.last} is below {group}.first={self.first}; ranks are drawn from first to last.")


def needs_candidates(quintuplet: QuintupletConfig, offline: OfflineConfig, taught: int = 0) -> bool:
    """Whether a run with these settings reads the folder `offline.candidates`; `taught`: those that teachers judge."""
    return quintuplet.kind not in ("", "online") or offline.replace_random or taught > 0


def check_ranks(candidates: Candidates, first: int, last: int, count: int = 0) -> None:
    """Every image and caption must have candidates up to rank `last`, and the ranks be enough for `count` distinct captions. (Of
    images all are taken where the ranks hold fewer than `count`.)"""
    captions, images = candidates.captions_of_image, candidates.images_of_caption
    if not (_reaches(captions, last) and _reaches(images, last // CAPTIONS_PER_IMAGE)):
        most = min(_fewest(captions), CAPTIONS_PER_IMAGE * _fewest(images)) - 1
        if most < first:
            raise UserError(f"{candidates.folder}: a row has no candidate at rank offline.first={first}; run tagsds-mine for more.")
        raise UserError(
            f"{candidates.folder} has no candidates at rank offline.last={last} in every row; "
            f"set offline.last={most} or run tagsds-mine for more."
        )
    if last - first + 1 < count:
        raise UserError(
            f"{count} negatives of a pair cannot be drawn from ranks offline.first={first} to offline.last={last}; raise "
            f"offline.last or lower negatives.count (negatives.keep with offline.score=false)."
        )


def images_in_ranks(first: int, last: int) -> int:
    """Image ranks that go with the caption ranks first..last."""
    return last // CAPTIONS_PER_IMAGE - first // CAPTIONS_PER_IMAGE + 1


def _reaches(table: Tensor, rank: int) -> bool:
    return table.shape[1] > rank and bool((table[:, rank] >= 0).all())


def _fewest(table: Tensor) -> int:
    return int((table >= 0).sum(dim=1).min())


def check_whole(candidates: Candidates, bank: Bank) -> None:
    """Candidates number the whole split, so a bank that is a window of it will not do."""
    if (len(candidates.captions_of_image), len(candidates.images_of_caption)) != (bank.num_images, bank.num_captions):
        raise UserError(
            f"{candidates.folder} numbers {len(candidates.captions_of_image)} images but {bank.num_images} are in memory; "
            f"raise data.max_gib until the whole split fits, or use no offline candidates."
        )


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """The rows of a CPU table, int64 on the device of `index`."""
    return table[index.cpu()].to(index.device, torch.int64)


@dataclass(frozen=True)
class OfflineDraw:
    """int64 [B] each: T_off, I_off, T'_off (a caption of I_off), I'_off (the image of T_off)."""

    caption_off: Tensor
    image_off: Tensor
    other_caption: Tensor
    other_image: Tensor


def draw_quintuplet(
    candidates: Candidates, bank: Bank, captions: Tensor, first: int, last: int, generator: torch.Generator
) -> OfflineDraw:
    """Of each true pair: captions int64 [B]. One rank n, uniform in first..last, serves both: T_off is candidate n of the image,
    I_off candidate n // 5 of the caption. T'_off is uniform among the captions annotated for I_off."""
    check_whole(candidates, bank)
    size, device = len(captions), bank.device
    n = torch.randint(first, last + 1, (size, 1), generator=generator, device=device)
    caption_off = _rows(candidates.captions_of_image, bank.image_of_caption[captions]).gather(1, n)[:, 0]
    image_off = _rows(candidates.images_of_caption, captions).gather(1, n // CAPTIONS_PER_IMAGE)[:, 0]
    annotated = bank.captions_of_image.lengths[image_off]
    which = (torch.rand(size, generator=generator, device=device) * annotated).long().minimum(annotated - 1)  # may round up
    other_caption = bank.captions_of_image.values[bank.captions_of_image.offsets[image_off] + which]
    return OfflineDraw(caption_off, image_off, other_caption, bank.image_of_caption[caption_off])


def draw_from_ranks(
    candidates: Candidates, bank: Bank, captions: Tensor, count: int, first: int, last: int, generator: torch.Generator
) -> tuple[Hard, Hard]:
    """Images of each caption and captions of its image, `count` of each, distinct ranks: captions int64 [B] -> index [B, count].

    Captions come from ranks first..last, images from first // 5..last // 5; where these are fewer than `count`, all of them are
    taken, and the result is that much narrower. In no order. Ranks behind the end of a row are not valid.
    """
    check_whole(candidates, bank)

    def drawn(rows: Tensor, begin: int, end: int) -> Hard:
        order = torch.rand(len(rows), end - begin + 1, generator=generator, device=bank.device).argsort(dim=1)
        index = rows.gather(1, begin + order[:, :count])
        return Hard(index.clamp(min=0), index >= 0)

    images = drawn(
        _rows(candidates.images_of_caption, captions), first // CAPTIONS_PER_IMAGE, last // CAPTIONS_PER_IMAGE
    )
    own = bank.image_of_caption[captions]
    return images, drawn(_rows(candidates.captions_of_image, own), first, last)


def mine_offline(
    candidates: Candidates, bank: Bank, captions: Tensor, offline: OfflineConfig, random: NegativesConfig, scorer: Scorer,
    draw: Draw,
) -> tuple[Hard, Hard]:  # fmt: skip
    """As `mine_random`, with `random.count` candidates of ranks `offline.first` to `offline.last` in place of random ones: the
    `random.keep` hardest of each direction."""
    generator = draw.generator(bank.device, "offline negatives")
    images, others = draw_from_ranks(candidates, bank, captions, random.count, offline.first, offline.last, generator)
    return keep_hardest(bank, captions, images, others, random.keep, scorer)
