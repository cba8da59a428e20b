"""contrast: a true pair against the hard images and the hard captions by cross entropy, where the papers have a margin."""

from __future__ import annotations

from torch import Tensor

from tagsds.losses.ranking import contrast
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.ranking import hard_captions, hard_images
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
