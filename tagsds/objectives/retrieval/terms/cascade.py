"""cascade: what trains the probe of cascade mining. No gradient of it reaches the encoder."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tagsds.data.pairs import Pairs
from tagsds.losses.cascade import probe_ranking
from tagsds.models.uniter import UniterModel
from tagsds.negatives.cascade import Lesson
from tagsds.negatives.random import both_directions
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.term import TermOutput
from tagsds.scoring.scorer import without_dropout

# Adam divides by the gradient's own size, so the probe learns as fast at any weight; a small one keeps the probe's gradient out of
# the norm by which all gradients are clipped
WEIGHT = 0.01


def scores_of_probe(model: UniterModel, pairs: Pairs) -> Tensor:
    """As mining sees them, without dropout, but with a gradient."""
    with without_dropout(model):
        return model.probe_scores(pairs)


class Cascade:
    """mean of log(1 + exp(p(other) - p(hard))), both directions; p the probe's score, hard and other by the whole encoder's."""

    heads: tuple[str, ...] = ("probe",)

    def ask(self, draws: Draws, plan: Plan, true: Place) -> tuple[Lesson, Lesson]:
        keep, generator = draws.negatives.random.keep, draws.draw.generator(draws.bank.device, "lesson")
        images, captions = draws.cascaded
        return images.lesson(keep, generator), captions.lesson(keep, generator)

    def value(self, asked: tuple[Lesson, Lesson], draws: Draws, states: States, true: Tensor) -> TermOutput:
        keep = draws.negatives.random.keep
        images, captions = (lesson.index for lesson in asked)
        score = partial(scores_of_probe, draws.negatives.model)
        scores = both_directions(draws.bank, draws.captions, images, captions, score)
        parts = [probe_ranking(s[:, :keep], s[:, keep:], lesson.weight) for s, lesson in zip(scores, asked, strict=True)]
        found = [direction.kept_of_top(keep) for direction in draws.cascaded]
        counters = {"cascade/kept_of_top": (found[0][0] + found[1][0], found[0][1] + found[1][1])}
        return TermOutput({"cascade": torch.stack(parts).mean()}, counters)
