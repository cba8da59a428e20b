"""Training a matcher with online and offline hard negatives (AOQ, arXiv 2003.03669; method 6).

Every image and caption of a micro-batch, true or drawn offline, is encoded once. The online negatives come from the whole matrix of
the batch, the offline ones from `tagsds-mine`'s candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.formats.candidates import Candidates
from tagsds.losses.quintuplet import Similarities, all_in_batch, hardest_in_batch, quintuplet
from tagsds.models.matchers import VSRN, Encoded, Matcher
from tagsds.negatives.offline import OfflineDraw, draw_quintuplet
from tagsds.objectives.report import Report, share
from tagsds.scoring.scorer import Scorer

OFFLINE = ("caption_off", "image_off", "both_off", "others_off")  # as `Similarities` names them


class MatchingObjective(nn.Module):
    """forward(bank, captions int64 [B], draw) -> Report; the terms are summed over the batch, as published."""

    writes = False

    def __init__(
        self, model: Matcher, config: RunConfig, vocab: Vocabulary, scorer: Scorer | None = None,
        candidates: Candidates | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.loss, self.offline = config.quintuplet, config.offline
        self.caption_weight = config.matcher.caption_weight
        self.candidates = candidates  # the loop exchanges them where they are re-mined

    @staticmethod
    def heads(config: RunConfig) -> list[str]:
        return []

    def forward(self, bank: Bank, captions: Tensor, draw: Draw) -> Report:
        own = bank.image_of_caption[captions]
        drawn = self.drawn(bank, captions, draw) if draw.step >= self.loss.warmup_steps else None
        wanted_images, wanted_captions = [own], [captions]
        if drawn is not None:
            wanted_images += [drawn.image_off, drawn.other_image]
            wanted_captions += [drawn.caption_off, drawn.other_caption]
        distinct_images, image_row = torch.unique(torch.cat(wanted_images), return_inverse=True)
        distinct_captions, caption_row = torch.unique(torch.cat(wanted_captions), return_inverse=True)
        images = self.model.encode_images(bank.image_table(distinct_images))
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
            terms = quintuplet(
                similarities, config.kind or "online", config.margin_on, config.margin_off, config.alpha, config.beta,
                config.detach, config.clamp, config.online,
            )  # fmt: skip
        total = torch.stack(list(terms.values())).sum()
        if isinstance(self.model, VSRN) and self.caption_weight:
            terms["captioning"] = self.captioning(images, image, bank, captions)
            total = total + self.caption_weight * terms["captioning"]
        counters, histograms = self.counts(similarities)
        return Report(total, terms, counters, histograms, size * size + 4 * size * (drawn is not None))

    def drawn(self, bank: Bank, captions: Tensor, draw: Draw) -> OfflineDraw | None:
        """The offline negatives of the micro-batch; None where the loss has none."""
        if self.loss.kind in ("", "online"):
            return None
        assert self.candidates is not None
        generator = draw.generator(bank.device, "offline")
        return draw_quintuplet(self.candidates, bank, captions, self.offline.first, self.offline.last, generator)

    def captioning(self, images: Encoded, rows: Tensor, bank: Bank, captions: Tensor) -> Tensor:
        """VSRN decodes each true caption from the region states of its image."""
        assert isinstance(self.model, VSRN) and images.states is not None
        states: Ragged = images.states.select(rows)
        described = Encoded(images.vectors[rows], images.lengths[rows], states)
        return self.model.captioning_loss(described, bank.text_table(captions))

    def counts(self, s: Similarities):
        """Ranking accuracies and the values of the histograms."""
        assert s.on_valid is not None
        counters = {
            "rank/true_above_caption": share(s.true > s.caption_on, s.on_valid[:, 0]),
            "rank/true_above_image": share(s.true > s.image_on, s.on_valid[:, 1]),
        }
        histograms = {
            "true": s.true.detach(),
            "hard_caption": s.caption_on[s.on_valid[:, 0]].detach(),
            "hard_image": s.image_on[s.on_valid[:, 1]].detach(),
        }
        if s.caption_off is not None and s.image_off is not None:
            counters["rank/true_above_offline_caption"] = share(s.true > s.caption_off)
            counters["rank/true_above_offline_image"] = share(s.true > s.image_off)
            histograms["offline"] = torch.cat([s.caption_off, s.image_off]).detach()
        return counters, histograms
