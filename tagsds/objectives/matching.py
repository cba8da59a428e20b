"""Training a matcher with online and offline hard negatives (AOQ, arXiv 2003.03669).

Every distinct image and caption of a micro-batch, true or drawn offline, is encoded once. The online negatives come from the whole
matrix of the batch, the offline ones from `tagsds-mine`'s candidates.

VSRN has BatchNorm, and what it normalises over changes the result. The released code encodes three batches of B images: I of the
true pairs, then I_off, then I'_off; an image in two pairs is in the batch twice. So does this one, for a matcher with BatchNorm
in training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.formats.candidates import Candidates
from tagsds.losses.quintuplet import QuintupletConfig, Similarities, all_in_batch, hardest_in_batch, quintuplet
from tagsds.models.matchers import Encoded, Matcher, MatcherSettings
from tagsds.negatives.offline import OfflineConfig, OfflineDraw, draw_quintuplet, needs_candidates
from tagsds.objectives.output import StepOutput, fraction
from tagsds.objectives.protocol import Objective
from tagsds.scoring.protocol import PairScorer

OFFLINE = ("caption_off", "image_off", "both_off", "others_off")  # as `Similarities` names them


class Settings(Protocol):
    """The groups of a run's settings that this objective reads."""

    matcher: MatcherSettings
    quintuplet: QuintupletConfig
    offline: OfflineConfig


class MatchingObjective(Objective):
    """forward(bank, captions int64 [B], draw) -> StepOutput; the terms are summed over the batch, as published."""

    trains: ClassVar[str] = "matcher"

    def __init__(self, model: Matcher, config: Settings, vocab: Vocabulary, scorer: PairScorer | None = None) -> None:
        super().__init__(model, config, vocab, scorer)
        self.loss, self.offline = config.quintuplet, config.offline
        self.extra_weights = config.matcher.extra_weights()

    @classmethod
    def check(cls, config: Any) -> None:
        if config.distil.teachers:
            raise UserError("distil.teachers teach the encoder; remove them, or set objective=retrieval.")

    @classmethod
    def needs_candidates(cls, config: Settings) -> bool:
        return needs_candidates(config.quintuplet, config.offline)

    def forward(self, bank: Bank, captions: Tensor, draw: Draw, candidates: Candidates | None = None) -> StepOutput:
        own = bank.image_of_caption[captions]
        drawn = self.drawn(bank, captions, draw, candidates) if draw.step >= self.loss.warmup_steps else None
        wanted_images, wanted_captions = [own], [captions]
        if drawn is not None:
            wanted_images += [drawn.image_off, drawn.other_image]
            wanted_captions += [drawn.caption_off, drawn.other_caption]
        images, image_row, states = self.encoded_images(bank, wanted_images)
        distinct_captions, caption_row = torch.unique(torch.cat(wanted_captions), return_inverse=True)
        texts = self.model.encode_captions(bank.text_table(distinct_captions))
        size = len(captions)
        image, image_off, other_image = [*image_row.split(size), None, None][:3]
        caption, caption_off, other_caption = [*caption_row.split(size), None, None][:3]

        scores = self.model.compare(images.select(image), texts.select(caption))  # [B, B], an image a row
        caption_on, image_on, on_valid = hardest_in_batch(scores, own, own)
        true = scores.diagonal()
        off: dict[str, Tensor] = {}
        if drawn is not None:
            rows = torch.cat([image, image_off, image_off, other_image])
            columns = torch.cat([caption_off, caption, caption_off, other_caption])
            parts = self.model.compare_pairs(images.select(rows), texts.select(columns)).split(size)
            off = dict(zip(OFFLINE, parts, strict=True))
        similarities = Similarities(true, caption_on, image_on, on_valid=on_valid, **off)
        config = self.loss
        if draw.step < config.warmup_steps:
            terms = all_in_batch(scores, own, own, config.margin_on)
        else:
            terms = quintuplet(similarities, config)
        total = torch.stack(list(terms.values())).sum()
        if self.extra_weights:
            extra = self.model.extra_losses(replace(images.select(image), states=states), bank.text_table(captions))
            for name, weight in self.extra_weights.items():
                terms[name] = extra[name]
                total = total + weight * extra[name]
        counters, histograms = self.counts(similarities)
        return StepOutput(total, terms, counters, histograms, size * size + 4 * size * (drawn is not None))

    def drawn(self, bank: Bank, captions: Tensor, draw: Draw, candidates: Candidates | None) -> OfflineDraw | None:
        """The offline negatives of the micro-batch; None where the loss has none."""
        if self.loss.kind in ("", "online"):
            return None
        assert candidates is not None
        generator = draw.generator(bank.device, "offline")
        return draw_quintuplet(candidates, bank, captions, self.offline.first, self.offline.last, generator)

    def encoded_images(self, bank: Bank, wanted: list[Tensor]) -> tuple[Encoded, Tensor, Ragged | None]:
        """The images of `wanted` (int64 [B] each) -> their encodings, the row of each in them (int64 [len(wanted) * B]), and the
        region states of the first B, where the matcher has them."""
        if self.model.training and self.model.has_batch_norm:
            parts = [self.model.encode_images(bank.image_table(group)) for group in wanted]
            images, states = Encoded.cat(parts), parts[0].states
            return images, torch.arange(len(images), device=bank.device), states
        distinct, row = torch.unique(torch.cat(wanted), return_inverse=True)
        images = self.model.encode_images(bank.image_table(distinct))
        return images, row, None if images.states is None else images.states.select(row[: len(wanted[0])])

    def counts(self, s: Similarities):
        """Ranking accuracies and the values of the histograms."""
        assert s.on_valid is not None
        counters = {
            "rank/true_above_caption": fraction(s.true > s.caption_on, s.on_valid[:, 0]),
            "rank/true_above_image": fraction(s.true > s.image_on, s.on_valid[:, 1]),
        }
        histograms = {
            "true": s.true.detach(),
            "hard_caption": s.caption_on[s.on_valid[:, 0]].detach(),
            "hard_image": s.image_on[s.on_valid[:, 1]].detach(),
        }
        if s.caption_off is not None and s.image_off is not None:
            counters["rank/true_above_offline_caption"] = fraction(s.true > s.caption_off)
            counters["rank/true_above_offline_image"] = fraction(s.true > s.image_off)
            histograms["offline"] = torch.cat([s.caption_off, s.image_off]).detach()
        return counters, histograms
