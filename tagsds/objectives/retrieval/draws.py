"""What the terms of a step draw without gradient: hard negatives, maskings, written sentences.

Each is drawn when the first term asks for it and kept for the others, so that syn, mlm, disc and corr speak of the same sentences.
Every draw has a generator of its own, so what one term asks for changes nothing of another's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor
from torch.nn import Module

from tagsds.data.bank import Bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.formats.candidates import Candidates
from tagsds.models.uniter import UniterModel
from tagsds.negatives.cascade import Narrowed, mine_cascaded
from tagsds.negatives.offline import OfflineConfig, draw_from_ranks, images_in_ranks, mine_offline
from tagsds.negatives.random import Hard, NegativesConfig, mine_random, mine_shared
from tagsds.negatives.writer import Maskings, SyntheticConfig, Written, mask_captions, write_negatives
from tagsds.scoring.scorer import Scorer


@dataclass
class Negatives:
    """How negatives are found: the settings of the run, and who scores and writes them.

    writer   the encoder that refills masked captions: `model`, or a copy of it as it was when the stage began
    """

    random: NegativesConfig
    synthetic: SyntheticConfig
    offline: OfflineConfig
    vocab: Vocabulary
    model: UniterModel
    scorer: Scorer
    writer: UniterModel


@dataclass
class Draws:
    """The draws of a micro-batch. B = true pairs, K = hard negatives of a pair.

    captions     int64 [B], numbers in the bank
    candidates   offline candidates of the bank's split, for settings that draw from them
    forwards     pairs that were forwarded without gradient so far
    """

    negatives: Negatives
    bank: Bank
    captions: Tensor
    draw: Draw
    candidates: Candidates | None = None
    forwards: int = field(default=0, init=False)

    @cached_property
    def images(self) -> Tensor:
        """The image of each true pair, int64 [B]."""
        return self.bank.image_of_caption[self.captions]

    @cached_property
    def hard(self) -> tuple[Hard, Hard]:
        """The hardest images of each caption and the hardest captions of each image: index int64 [B, K]."""
        random, offline, scorer = self.negatives.random, self.negatives.offline, self.negatives.scorer
        if random.shared:
            self.forwards += len(self.captions) ** 2
            return mine_shared(self.bank, self.captions, random.keep, scorer)
        if random.cascade:
            images, captions = self.cascaded
            return images.hard(random.keep), captions.hard(random.keep)
        if not offline.replace_random:
            self.forwards += 2 * random.count * len(self.captions)
            return mine_random(self.bank, self.captions, random.count, random.keep, scorer, self.draw)
        if not offline.score:
            return self.offline(random.keep, "offline negatives")
        assert self.candidates is not None
        self.forwards += (random.count + min(random.count, images_in_ranks(offline.first, offline.last))) * len(self.captions)
        return mine_offline(self.candidates, self.bank, self.captions, offline, random, scorer, self.draw)

    def offline(self, count: int, purpose: str) -> tuple[Hard, Hard]:
        """`count` offline candidates of each direction, unscored and in no order: images of each caption, captions of its image."""
        assert self.candidates is not None
        generator = self.draw.generator(self.bank.device, purpose)
        of = self.negatives.offline
        return draw_from_ranks(self.candidates, self.bank, self.captions, count, of.first, of.last, generator)

    @cached_property
    def cascaded(self) -> tuple[Narrowed, Narrowed]:
        """The random images of each caption and captions of each image that the probe has left, with their scores."""
        found = mine_cascaded(self.bank, self.captions, self.negatives.random, self.negatives.scorer, self.draw)
        self.forwards += sum(direction.index.numel() for direction in found)
        return found

    @property
    def hard_are_ordered(self) -> bool:
        """Whether the first of `hard` is the hardest: mining has scored them."""
        return self.negatives.offline.score or not self.negatives.offline.replace_random

    @cached_property
    def maskings(self) -> Maskings:
        """Each caption masked along its spans, `synthetic.maskings` times."""
        generator = self.draw.generator(self.bank.device, "mask")
        return mask_captions(self.bank, self.captions, self.negatives.synthetic, self.negatives.vocab, generator)

    @cached_property
    def everything_written(self) -> Written:
        """The sentences that the writer writes for each caption, after filtering."""
        of = self.negatives
        if of.writer is not of.model:  # a copy is not moved with the objective
            Module.to(of.writer, self.bank.device)
        everything = write_negatives(
            of.writer, of.scorer, self.bank, self.captions, self.maskings, of.synthetic, of.vocab, self.draw
        )
        masked = 0 if of.synthetic.writer == "words" else self.maskings.masked.shape[:2].numel()
        self.forwards += masked + len(everything.ids)
        return everything

    @cached_property
    def written(self) -> Written:
        """The hardest of them, at most `negatives.keep` a caption."""
        return self.everything_written.hardest(len(self.captions), self.negatives.random.keep)
