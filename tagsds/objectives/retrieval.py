"""Fine-tuning: retrieval baseline, TAGS (stage 1) and TAGS-DC (stage 2) are this objective with other weights
(TAGS-DC, arXiv 2111.03349; method 3 and 4).

Negatives are drawn without gradient; then ONE packed forward with gradient covers the true pairs (once), hard images, hard
captions, written sentences and maskings, so that DeepSpeed sees one forward and one backward a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.builder import PairBuilder
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.losses.discrimination import discrimination
from tagsds.losses.masked import word_cross_entropy
from tagsds.losses.ranking import triplet
from tagsds.models.uniter import Layout, UniterModel
from tagsds.negatives.random import Hard, mine_random, mine_shared
from tagsds.negatives.writer import Maskings, Written, mask_captions, write_negatives
from tagsds.objectives.report import Report, share
from tagsds.retrieval.scorer import Scorer


class RetrievalObjective(nn.Module):
    """forward(bank, captions int64 [B], draw) -> Report."""

    def __init__(self, model: UniterModel, config: RunConfig, vocab: Vocabulary, scorer: Scorer) -> None:
        super().__init__()
        self.model = model
        self.loss, self.negatives, self.synthetic = config.loss, config.negatives, config.synthetic
        self.vocab = vocab
        self.scorer = scorer

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
        size = len(captions)  # one call, so that a caption that is true here and hard there is one row
        all_rows = builder.captions(torch.cat([captions, hard_captions.index.flatten()]))
        rows, hard_rows = all_rows[:size], all_rows[size:].view_as(hard_captions.index)
        true = builder.pairs(rows, images)
        at_images = builder.pairs(rows[:, None].expand_as(hard_images.index), hard_images.index)
        at_captions = builder.pairs(hard_rows, images[:, None].expand_as(hard_captions.index))
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
        scored = torch.cat([number[s] for s in (true, at_images, at_captions, at_written)])
        cls = layout.cls(scored)
        words = layout.words(number[at_written]) if self.loss.disc or self.loss.corr else cls[:0]
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
        return Report(total, terms, counters, scores, forwards)

    def mine(self, bank: Bank, captions: Tensor, draw: Draw) -> tuple[Hard, Hard, int]:
        """Hard images, hard captions, and how many pairs were scored for them."""
        config = self.negatives
        if config.shared:
            return *mine_shared(bank, captions, config.keep, self.scorer), len(captions) ** 2
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
        """disc and corr from the states of the words of the written sentences."""
        original = maskings.ids[written.caption]
        column = torch.arange(original.shape[1], device=original.device)
        is_word = (column > 0) & (column < maskings.lengths[written.caption][:, None] - 1)
        replaced = (written.ids != original)[is_word]
        masked = written.masked[is_word]
        if self.loss.disc:
            logits = self.model.discriminate(states)
            terms["disc"] = discrimination(logits, replaced, self.loss.weight_replaced, self.loss.weight_kept)
            guess = logits.argmax(dim=-1) == 1
            counters["disc/accuracy_replaced"] = share(guess, replaced)
            counters["disc/accuracy_kept"] = share(~guess, ~replaced)
        if self.loss.corr:
            logits, target = self.model.correct(states[masked]), original[is_word][masked]
            terms["corr"] = word_cross_entropy(logits, target)
            counters["corr/accuracy"] = share(logits.argmax(dim=-1) == target)
