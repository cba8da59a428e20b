"""contrast, contrast_syn: a true pair against its negatives by cross entropy over ranking logits, where the papers have a margin on
sigmoids.

A softmax over logits does not see their level. Beside one that is alone in deciding it (a taught run, whose margins are left out)
the hinge of syn loses its gradient: it pays to raise all logits of an image until every sigmoid is near one.
"""

from __future__ import annotations

from torch import Tensor

from tagsds.losses.ranking import contrast
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.ranking import hard_captions, hard_images
from tagsds.objectives.retrieval.terms.synthetic import by_caption, written_sentences
from tagsds.objectives.retrieval.terms.term import TermOutput


class Contrast:
    """InfoNCE over ranking logits, both directions: the negatives are those of t2i and i2t, and share their forward."""

    heads: tuple[str, ...] = ()

    def ask(self, draws: Draws, plan: Plan, true: Place) -> tuple[Place, Place, Place]:
        return true, hard_images(draws, plan), hard_captions(draws, plan)

    def value(self, asked: tuple[Place, Place, Place], draws: Draws, states: States, true: Tensor) -> TermOutput:
        z, *others = map(states.logits, asked)
        losses = {
            f"contrast_{name}": contrast(z, logits.view_as(hard.index), hard.valid)
            for name, logits, hard in zip(("t2i", "i2t"), others, draws.hard, strict=True)
        }
        return TermOutput(losses)


class ContrastWritten:
    """InfoNCE over ranking logits against the hardest written sentences, those of syn."""

    heads: tuple[str, ...] = ()

    def ask(self, draws: Draws, plan: Plan, true: Place) -> tuple[Place, Place]:
        return true, written_sentences(draws, plan)

    def value(self, asked: tuple[Place, Place], draws: Draws, states: States, true: Tensor) -> TermOutput:
        z, written = map(states.logits, asked)
        return TermOutput({"contrast_syn": contrast(z, *by_caption(written, draws.written, len(true)))})
