"""TAGS (stage 1) and TAGS-DC (stage 2) as the released runs compute them, one pair per forward (arXiv 2111.03349).

Drawn by the package: negatives, maskings, and the generator of the refills, which are sampled here from the literal logits.

Reductions, of a micro-batch of B true pairs:

- t2i, i2t, syn: the mean over the K hardest of a pair, then over the pairs that have any. A pair whose written sentences were all
  dropped does not count in syn (0 where no pair has one).
- mlm: the mean over all masked positions of all maskings of all pairs;  corr: over all masked positions of all hard sentences.
- disc: the weighted cross entropies of all tokens of all hard sentences, [CLS] and [SEP] too, divided by the number of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.negatives.random import draw_captions, draw_images
from tagsds.negatives.writer import mask_captions
from tests.parity import literal_encoder as uniter
from tests.parity.literal_encoder import Weights
from tests.parity.literal_optimiser import Terms

SOURCE = {"rank": "itm", "discriminate": "itm", "correct": "mlm"}


def begin_heads(w: Weights, heads: list[str]) -> None:
    """Heads that no earlier stage has trained: rank = row 1 of itm, discriminate = itm, correct = mlm."""
    for head in heads:
        for name in [name for name in w if name.startswith(f"{SOURCE[head]}.")]:
            value = w[name][1:2] if head == "rank" else w[name]
            w[name.replace(SOURCE[head], head, 1)] = value.clone()


class MicroBatch:
    """The forward of one micro-batch: `terms` after construction. `counts`: per pair, how many sentences survived the filter."""

    def __init__(
        self, w: Weights, bank: Bank, captions: list[int], config: RunConfig, vocab: Vocabulary, draw: Draw, heads: int
    ) -> None:
        self.w, self.bank, self.config, self.vocab, self.heads = w, bank, config, vocab, heads
        count, loss = config.negatives.count, config.loss
        own = [int(bank.image_of_caption[number]) for number in captions]
        images = draw_images(bank, torch.tensor(own), count, draw.generator("cpu", "negative images")).tolist()
        others = draw_captions(bank, torch.tensor(own), count, draw.generator("cpu", "negative captions")).tolist()
        maskings = mask_captions(bank, torch.tensor(captions), config.synthetic, vocab, draw.generator("cpu", "mask"))
        refills = draw.generator("cpu", "refill")
        rows: dict[str, list[Tensor]] = {name: [] for name in ("t2i", "i2t", "syn", "mlm", "disc", "corr")}
        self.counts = []
        for b, number in enumerate(captions):
            text = uniter.caption(bank, number)
            masked = maskings.masked[b][:, : len(text)]
            chosen = [row[: len(text)].nonzero().flatten().tolist() for row in maskings.chosen[b]]
            true = self.score(text, own[b])
            rows["t2i"].append(self.hinges(true, self.hardest([(text, image) for image in images[b]])))
            rows["i2t"].append(self.hinges(true, self.hardest([(uniter.caption(bank, other), own[b]) for other in others[b]])))
            written = [c for c in self.write(text, masked, chosen, own[b], refills) if self.is_negative(c[0], text, own[b])]
            written = [c for n, c in enumerate(written) if not any(torch.equal(c[0], before[0]) for before in written[:n])]
            self.counts.append(len(written))
            hard = self.hardest([(sentence, own[b]) for sentence, _ in written])
            if hard:
                rows["syn"].append(self.hinges(true, hard))
            for n in [next(n for n, c in enumerate(written) if c[0] is sentence) for sentence, _ in hard]:
                self.read_words(written[n][0], text, written[n][1], own[b], rows)
            for ids, positions in zip(masked, chosen):
                x = self.states(ids, own[b])
                rows["mlm"] += [-uniter.log_softmax(uniter.word_logits(w, "mlm", x[p]))[text[p]] for p in positions]
        zero = torch.zeros((), dtype=torch.float64)
        wanted = {"t2i": loss.t2i, "i2t": loss.i2t, "syn": loss.syn, "mlm": loss.mlm, "disc": loss.disc, "corr": loss.corr}
        self.terms: Terms = {}
        for name, weight in wanted.items():
            if weight:
                self.terms[name] = torch.stack(rows[name]).mean() if rows[name] else zero
        self.terms["total"] = sum((wanted[name] * term for name, term in self.terms.items()), zero)

    def states(self, ids: Tensor, image: int) -> Tensor:
        return uniter.states(self.w, uniter.pair_of(self.bank, ids, image), self.heads)

    def score(self, ids: Tensor, image: int) -> Tensor:
        """s(I, T)."""
        return 1 / (1 + torch.exp(-uniter.rank_logit(self.w, self.states(ids, image))))

    @torch.no_grad()
    def hardest(self, candidates: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
        """The K of highest score, without gradient."""
        scores = [float(self.score(*candidate)) for candidate in candidates]
        order = sorted(range(len(candidates)), key=lambda n: -scores[n])
        return [candidates[n] for n in order[: self.config.negatives.keep]]

    def hinges(self, true: Tensor, negatives: list[tuple[Tensor, int]]) -> Tensor:
        """Mean of [m + s(negative) - s(true)]+."""
        hinges = [self.config.loss.margin + self.score(*negative) - true for negative in negatives]
        return torch.stack([h if h > 0 else h * 0 for h in hinges]).mean()

    @torch.no_grad()
    def write(
        self, text: Tensor, masked: Tensor, chosen: list[list[int]], image: int, random: torch.Generator
    ) -> list[tuple[Tensor, list[int]]]:
        """(sentence, positions that had been masked): each masking refilled from softmax(logits / tau) without special pieces."""
        special = {self.vocab.pad, self.vocab.unk, self.vocab.cls, self.vocab.sep, self.vocab.mask}
        pieces = [piece for piece in range(self.vocab.size) if piece not in special]
        out = []
        for ids, positions in zip(masked, chosen):
            x = self.states(ids, image)
            logits = torch.stack([uniter.word_logits(self.w, "mlm", x[p])[pieces] for p in positions])
            weight = torch.exp(logits / self.config.synthetic.tau)
            odds = (weight / weight.sum(dim=1, keepdim=True)).float()
            drawn = torch.multinomial(odds, self.config.synthetic.refills, replacement=True, generator=random)
            for column in drawn.T.tolist():
                sentence = text.clone()
                for position, index in zip(positions, column):
                    sentence[position] = pieces[index]
                out.append((sentence, positions))
        return out

    def is_negative(self, sentence: Tensor, text: Tensor, image: int) -> bool:
        """Not a caption annotated for the image, and not changed only to pieces that occur in those captions."""
        annotated = [
            uniter.caption(self.bank, number)
            for number, of in enumerate(self.bank.image_of_caption.tolist())
            if of == image
        ]
        known = {piece for ids in annotated for piece in ids.tolist()}
        if any(torch.equal(sentence, ids) for ids in annotated):
            return False
        return any(new != old and new not in known for new, old in zip(sentence.tolist(), text.tolist()))

    def read_words(self, sentence: Tensor, text: Tensor, positions: list[int], image: int, rows: dict[str, list[Tensor]]) -> None:
        """disc: column 1 = the token is the original; weights 1.0 (replaced), 0.11. corr: the original at the masked positions."""
        if not (self.config.loss.disc or self.config.loss.corr):
            return
        x = self.states(sentence, image)
        for position in range(len(text)):
            original = bool(sentence[position] == text[position])
            log_p = uniter.log_softmax(uniter.linear(self.w, "discriminate", x[position]))
            rows["disc"].append(-(0.11 if original else 1.0) * log_p[1 if original else 0])
        for position in positions:
            rows["corr"].append(-uniter.log_softmax(uniter.word_logits(self.w, "correct", x[position]))[text[position]])
