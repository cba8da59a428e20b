"""t2i and i2t: a true pair against the hardest of other images, and of captions of other images (arXiv 2111.03349, 3.1)."""

from __future__ import annotations

from torch import Tensor

from tagsds.losses.ranking import triplet
from tagsds.negatives.random import Hard
from tagsds.objectives.output import fraction
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.term import TermOutput


def pairs_of_images(draws: Draws, plan: Plan, images: Hard) -> Place:
    """Each caption with some images of its own, index [B, K]."""
    return plan.captions(draws.captions[:, None].expand_as(images.index), images.index)


def pairs_of_captions(draws: Draws, plan: Plan, captions: Hard) -> Place:
    """Each image with some captions of its own, index [B, K]."""
    return plan.captions(captions.index, draws.images[:, None].expand_as(captions.index))


def hard_images(draws: Draws, plan: Plan) -> Place:
    """Each caption with its hard images."""
    return plan.once("hard images", lambda: pairs_of_images(draws, plan, draws.hard[0]))


def hard_captions(draws: Draws, plan: Plan) -> Place:
    """Each image with its hard captions."""
    return plan.once("hard captions", lambda: pairs_of_captions(draws, plan, draws.hard[1]))


def ranked(name: str, kind: str, true: Tensor, scores: Tensor, hard: Hard, margin: float) -> TermOutput:
    """The triplet loss over the hard negatives of one direction: scores float [B * K]."""
    scores = scores.view_as(hard.index)
    loss = triplet(true, scores, hard.valid, margin)
    counters = {f"rank/true_above_{kind}": fraction(true[:, None] > scores, hard.valid)}
    return TermOutput({name: loss}, counters, {f"hard_{kind}": scores[hard.valid].detach()})


class TextToImage:
    """mean over the hard images of [m + s(I-, T) - s(I, T)]+."""

    heads: tuple[str, ...] = ()

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Place:
        return hard_images(draws, plan)

    def value(self, asked: Place, draws: Draws, states: States, true: Tensor) -> TermOutput:
        return ranked("t2i", "image", true, states.scores(asked), draws.hard[0], self.margin)


class ImageToText:
    """mean over the hard captions of [m + s(I, T-) - s(I, T)]+."""

    heads: tuple[str, ...] = ()

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Place:
        return hard_captions(draws, plan)

    def value(self, asked: Place, draws: Draws, states: States, true: Tensor) -> TermOutput:
        return ranked("i2t", "caption", true, states.scores(asked), draws.hard[1], self.margin)
