"""Fine-tuning: retrieval baseline, TAGS (stage 1) and TAGS-DC (stage 2) are this objective with other weights
(TAGS-DC, arXiv 2111.03349; method 3 and 4). The offline negatives and the quintuplet loss of AOQ join them where the settings
ask for them (arXiv 2003.03669; method 6).

Negatives are drawn without gradient; then ONE packed forward with gradient covers the true pairs (once), hard images, hard
captions, offline pairs, written sentences and maskings, so that DeepSpeed sees one forward and one backward a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagsds.config import RunConfig
from tagsds.config_offline import needs_candidates
from tagsds.data.bank import Bank
from tagsds.data.builder import PairBuilder
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.formats.candidates import Candidates
from tagsds.losses.discrimination import discrimination
from tagsds.losses.masked import word_cross_entropy
from tagsds.losses.ranking import triplet
from tagsds.models.uniter import Layout, UniterModel
from tagsds.negatives.offline import check_ranks, draw_from_ranks, images_in_ranks, mine_offline
from tagsds.negatives.random import Hard, mine_random, mine_shared
from tagsds.negatives.writer import Maskings, Written, mask_captions, write_negatives
from tagsds.objectives.offline_terms import hardest_of, offline_pairs, quintuplet_terms
from tagsds.objectives.report import Report, share
from tagsds.scoring.scorer import Scorer


class RetrievalObjective(nn.Module):
    """forward(bank, captions int64 [B], draw) -> Report. `candidates`: of the bank's split, where `needs_candidates`."""

    def __init__(
        self, model: UniterModel, config: RunConfig, vocab: Vocabulary, scorer: Scorer, candidates: Candidates | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.loss, self.negatives, self.synthetic = config.loss, config.negatives, config.synthetic
        self.vocab = vocab
        self.scorer = scorer
        self.quintuplet, self.offline, self.candidates = config.quintuplet, config.offline, candidates
        if needs_candidates(config.quintuplet, config.offline):
            assert candidates is not None, "the settings ask for offline candidates"
            drawn = self.negatives.count if self.offline.score else self.negatives.keep
            check_ranks(candidates, self.offline.first, self.offline.last, drawn if self.offline.replace_random else 0)

    @staticmethod
    def heads(config: RunConfig) -> list[str]:
        """The heads this stage trains."""
        loss = config.loss
        wanted = {"rank": True, "mlm": loss.mlm, "discriminate": loss.disc, "correct": loss.corr}
        return [head for head, weight in wanted.items() if weight]

    @property
    def writes(self) -> bool:
        return any((self.loss.syn, self.loss.mlm, self.loss.disc, self.loss.corr))

    def forward(self, bank: Bank, captions: Tensor, draw: Draw) -> Report:
        images = bank.image_of_caption[captions]
        hard_images, hard_captions, forwards = self.mine(bank, captions, draw)
        offline = offline_pairs(self.quintuplet.kind, self.candidates, self.offline, bank, captions, draw)
        maskings = written = None
        if self.writes:
            generator = draw.generator(bank.device, "mask")
            maskings = mask_captions(bank, captions, self.synthetic, self.vocab, generator)
            everything = write_negatives(
                self.model, self.scorer, bank, captions, maskings, self.synthetic, self.vocab, draw
            )
            forwards += maskings.masked.shape[:2].numel() + len(everything.ids)
            written = everything.hardest(len(captions), self.negatives.keep)

        builder = PairBuilder(bank)
        wanted = (captions, hard_captions.index, offline.captions)
        # one call, so that a caption that is true here and hard there is one row
        all_rows = builder.captions(torch.cat([numbers.flatten() for numbers in wanted]))
        rows, hard_rows, offline_rows = all_rows.split([numbers.numel() for numbers in wanted])
        hard_rows = hard_rows.view_as(hard_captions.index)
        true = builder.pairs(rows, images)
        at_images = builder.pairs(rows[:, None].expand_as(hard_images.index), hard_images.index)
        at_captions = builder.pairs(hard_rows, images[:, None].expand_as(hard_captions.index))
        at_offline = builder.pairs(offline_rows, offline.images)
        at_written = at_maskings = slice(0, 0)
        if written is not None and maskings is not None:
            sentences = Ragged.from_padded(written.ids, maskings.lengths[written.caption])
            at_written = builder.pairs(builder.texts(sentences), images[written.caption])
            if self.loss.mlm:
                per_caption = maskings.masked.shape[1]
                at_maskings = builder.pairs(builder.texts(maskings.table()), images.repeat_interleave(per_caption))
        pairs = builder.build()
        forwards += len(pairs)

        layout = Layout.of(pairs)
        number = torch.arange(len(pairs), device=bank.device)
        scored = torch.cat([number[s] for s in (true, at_images, at_captions, at_offline, at_written)])
        cls = layout.cls(scored)
        words = layout.texts(number[at_written]) if self.loss.disc or self.loss.corr else cls[:0]
        hidden = cls[:0]
        if maskings is not None and self.loss.mlm:
            hidden = maskings.hidden(layout, at_maskings.start)
        keep = torch.unique(torch.cat([cls, words, hidden]))
        states = self.model(pairs, keep)

        score = torch.sigmoid(self.model.score(states[torch.searchsorted(keep, cls)]))
        terms, counters, scores = self.ranking(score[true], score[at_images], score[at_captions], hard_images, hard_captions)
        if written is not None and maskings is not None:
            self.add_synthetic(terms, counters, scores, score[true], score[at_written], written)
            if self.loss.mlm:
                logits = self.model.mlm(states[torch.searchsorted(keep, hidden)])
                terms["mlm"] = word_cross_entropy(logits, maskings.originals())
            if self.loss.disc or self.loss.corr:
                self.add_words(terms, counters, states[torch.searchsorted(keep, words)], written, maskings)
        total = sum(getattr(self.loss, name) * term for name, term in terms.items())
        if self.quintuplet.kind:
            at = score[true], score[at_images], score[at_captions], score[at_offline].view_as(offline.images)
            total = total + self.quintuplet.weight * self.add_quintuplet(terms, counters, *at, hard_images, hard_captions)
        return Report(total, terms, counters, scores, forwards)

    def mine(self, bank: Bank, captions: Tensor, draw: Draw) -> tuple[Hard, Hard, int]:
        """Hard images, hard captions, and how many pairs were scored for them."""
        config = self.negatives
        if config.shared:
            return *mine_shared(bank, captions, config.keep, self.scorer), len(captions) ** 2
        if self.offline.replace_random:
            assert self.candidates is not None
            ranks = self.offline.first, self.offline.last
            if not self.offline.score:
                generator = draw.generator(bank.device, "offline negatives")
                return *draw_from_ranks(self.candidates, bank, captions, config.keep, *ranks, generator), 0
            per_pair = config.count + min(config.count, images_in_ranks(*ranks))
            hard = mine_offline(self.candidates, bank, captions, config.count, config.keep, *ranks, self.scorer, draw)
            return *hard, per_pair * len(captions)
        hard = mine_random(bank, captions, config.count, config.keep, self.scorer, draw)
        return *hard, 2 * config.count * len(captions)

    def ranking(self, true: Tensor, at_images: Tensor, at_captions: Tensor, images: Hard, captions: Hard):
        """t2i and i2t, from scores of the true pairs [B] and of their hard negatives [B * K]."""
        i, c = at_images.view_as(images.index), at_captions.view_as(captions.index)
        terms = {
            "t2i": triplet(true, i, images.valid, self.loss.margin),
            "i2t": triplet(true, c, captions.valid, self.loss.margin),
        }
        counters = {
            "rank/true_above_image": share(true[:, None] > i, images.valid),
            "rank/true_above_caption": share(true[:, None] > c, captions.valid),
        }
        scores = {
            "true": true.detach(),
            "hard_image": i[images.valid].detach(),
            "hard_caption": c[captions.valid].detach(),
        }
        return terms, counters, scores

    def add_quintuplet(self, terms, counters, true: Tensor, at_images, at_captions, off: Tensor, images: Hard, captions: Hard):
        """The aoq terms and their sum, from scores of the true pairs [B], their hard negatives [B * K] and offline pairs [n, B]."""
        ordered = self.offline.score or not self.offline.replace_random
        caption_on = hardest_of(at_captions.view_as(captions.index), captions, ordered)
        image_on = hardest_of(at_images.view_as(images.index), images, ordered)
        found = quintuplet_terms(self.quintuplet, true, caption_on, image_on, off)
        terms.update(found)
        if len(off):
            counters["rank/true_above_offline"] = share(true > off)
        return sum(found.values())

    def add_synthetic(self, terms, counters, scores, true: Tensor, score: Tensor, written: Written) -> None:
        """syn, over the hardest written sentences, however few of a caption are left."""
        count = torch.bincount(written.caption, minlength=len(true))
        ones = torch.ones_like(count, dtype=torch.float32)
        if len(score):
            table = Ragged(score, count).pad(0.0)
            valid = torch.arange(table.shape[1], device=score.device) < count[:, None]
        else:  # keeps the graph whole
            table, valid = score.sum() + true[:, None], torch.zeros_like(true[:, None], dtype=torch.bool)
        terms["syn"] = triplet(true, table, valid, self.loss.margin)
        counters["rank/true_above_synthetic"] = share(true[:, None] > table, valid)
        for name, value in written.counts.items():
            counters[f"filter/{name}"] = (value.float(), ones.sum())
        counters["filter/kept"] = (count.sum().float(), ones.sum())
        scores["synthetic"] = score.detach()
        scores["synthetic_minus_true"] = (score - true[written.caption]).detach()

    def add_words(self, terms, counters, states: Tensor, written: Written, maskings: Maskings) -> None:
        """disc and corr from the states of the written sentences' word pieces, [CLS] and [SEP] included; the accuracies of disc
        count the pieces between them."""
        original = maskings.ids[written.caption]
        lengths = maskings.lengths[written.caption][:, None]
        column = torch.arange(original.shape[1], device=original.device)
        is_token = column < lengths
        is_word = ((column > 0) & (column < lengths - 1))[is_token]
        replaced = (written.ids != original)[is_token]
        masked = written.masked[is_token]
        if self.loss.disc:
            logits = self.model.discriminate(states)
            terms["disc"] = discrimination(logits, replaced, self.loss.weight_replaced, self.loss.weight_kept)
            guess = logits.argmax(dim=-1) == 0
            counters["disc/accuracy_replaced"] = share(guess, replaced)
            counters["disc/accuracy_kept"] = share(~guess, ~replaced & is_word)
        if self.loss.corr:
            logits, target = self.model.correct(states[masked]), original[is_token][masked]
            terms["corr"] = word_cross_entropy(logits, target)
            counters["corr/accuracy"] = share(logits.argmax(dim=-1) == target)
