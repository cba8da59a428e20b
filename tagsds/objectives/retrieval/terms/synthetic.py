"""syn: a true pair against the hardest sentences that the encoder writes itself (arXiv 2111.03349, 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.ragged import Ragged
from tagsds.losses.ranking import triplet
from tagsds.negatives.writer import Written
from tagsds.objectives.output import fraction
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.term import TermOutput


def written_sentences(draws: Draws, plan: Plan) -> Place:
    """The hardest written sentences with their images."""
    written = draws.written
    texts = Ragged.from_padded(written.ids, draws.maskings.lengths[written.caption])
    return plan.once("written", lambda: plan.texts(texts, draws.images[written.caption], scored=True))


def by_caption(of_written: Tensor, written: Written, captions: int) -> tuple[Tensor, Tensor]:
    """A value of each written sentence [n] as a row of each caption [captions, K], and which slots hold one: bool. K is the most
    that a caption has, and 1 slot that holds none where no sentence is left at all."""
    if not len(of_written):
        empty = of_written.sum().expand(captions, 1)  # keeps the graph whole
        return empty, torch.zeros_like(empty, dtype=torch.bool)
    count = torch.bincount(written.caption, minlength=captions)
    table = Ragged(of_written, count).pad(0.0)
    return table, torch.arange(table.shape[1], device=table.device) < count[:, None]


class Synthetic:
    """mean over the hardest written sentences of [m + s(I, T~) - s(I, T)]+, however few of a caption the filter leaves."""

    heads: tuple[str, ...] = ()

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Place:
        return written_sentences(draws, plan)

    def value(self, asked: Place, draws: Draws, states: States, true: Tensor) -> TermOutput:
        written, score = draws.written, states.scores(asked)
        table, valid = by_caption(score, written, len(true))
        captions = torch.ones_like(true).sum()
        counters = {"rank/true_above_synthetic": fraction(true[:, None] > table, valid)}
        counters |= {f"filter/{name}": (value.float(), captions) for name, value in written.counts.items()}
        counters["filter/kept"] = (valid.sum().float(), captions)
        scores = {"synthetic": score.detach(), "synthetic_minus_true": (score - true[written.caption]).detach()}
        return TermOutput({"syn": triplet(true, table, valid, self.margin)}, counters, scores)
