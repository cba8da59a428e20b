"""syn: a true pair against the hardest sentences that the encoder writes itself (arXiv 2111.03349, 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.ragged import Ragged
from tagsds.losses.ranking import triplet
from tagsds.objectives.output import fraction
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.term import TermOutput


def written_sentences(draws: Draws, plan: Plan) -> Place:
    """The hardest written sentences with their images."""
    written = draws.written
    texts = Ragged.from_padded(written.ids, draws.maskings.lengths[written.caption])
    return plan.once("written", lambda: plan.texts(texts, draws.images[written.caption], scored=True))


class Synthetic:
    """mean over the hardest written sentences of [m + s(I, T~) - s(I, T)]+, however few of a caption the filter leaves."""

    heads: tuple[str, ...] = ()

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Place:
        return written_sentences(draws, plan)

    def value(self, asked: Place, draws: Draws, states: States, true: Tensor) -> TermOutput:
        written, score = draws.written, states.scores(asked)
        count = torch.bincount(written.caption, minlength=len(true))
        captions = torch.ones_like(count, dtype=torch.float32).sum()
        if len(score):
            table = Ragged(score, count).pad(0.0)
            valid = torch.arange(table.shape[1], device=score.device) < count[:, None]
        else:  # keeps the graph whole
            table, valid = score.sum() + true[:, None], torch.zeros_like(true[:, None], dtype=torch.bool)
        counters = {"rank/true_above_synthetic": fraction(true[:, None] > table, valid)}
        counters |= {f"filter/{name}": (value.float(), captions) for name, value in written.counts.items()}
        counters["filter/kept"] = (count.sum().float(), captions)
        scores = {"synthetic": score.detach(), "synthetic_minus_true": (score - true[written.caption]).detach()}
        return TermOutput({"syn": triplet(true, table, valid, self.margin)}, counters, scores)
