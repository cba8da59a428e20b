"""mlm, disc and corr: the terms that are read off single word pieces (arXiv 2111.03349, 3.2 and 3.3).

The heads are modules of the encoder and are called on the states that the one forward kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.losses.discrimination import discrimination
from tagsds.losses.masked import word_cross_entropy
from tagsds.models.uniter import Layout
from tagsds.objectives.output import fraction
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, Positions, States
from tagsds.objectives.retrieval.terms.synthetic import written_sentences
from tagsds.objectives.retrieval.terms.term import TermOutput


class MaskedWords:
    """mlm: cross entropy at the masked positions of the maskings, with the image in view."""

    heads: tuple[str, ...] = ("mlm",)

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Positions:
        maskings = draws.maskings
        images = draws.images.repeat_interleave(maskings.masked.shape[1])
        place = plan.texts(maskings.table(), images, scored=False)
        return plan.positions(lambda layout: maskings.hidden(layout, place.at.start))

    def value(self, asked: Positions, draws: Draws, states: States, true: Tensor) -> TermOutput:
        logits = draws.negatives.model.mlm(states.at(asked))
        return TermOutput({"mlm": word_cross_entropy(logits, draws.maskings.originals())})


@dataclass
class Tokens:
    """The word pieces of the written sentences, [CLS] and [SEP] included, one after another: M of them.

    replaced   bool [M]: differs from the original       masked     bool [M]: had been masked
    is_word    bool [M]: neither [CLS] nor [SEP]         original   int64 [M]
    """

    replaced: Tensor
    masked: Tensor
    is_word: Tensor
    original: Tensor

    @staticmethod
    def of(draws: Draws) -> Tokens:
        written, maskings = draws.written, draws.maskings
        original = maskings.ids[written.caption]
        lengths = maskings.lengths[written.caption][:, None]
        column = torch.arange(original.shape[1], device=original.device)
        is_token = column < lengths
        is_word = ((column > 0) & (column < lengths - 1))[is_token]
        return Tokens((written.ids != original)[is_token], written.masked[is_token], is_word, original[is_token])


def written_tokens(draws: Draws, plan: Plan) -> Positions:
    """Stream positions of the word pieces of the written sentences."""
    place = written_sentences(draws, plan)

    def find(layout: Layout) -> Tensor:
        return layout.texts(torch.arange(place.at.start, place.at.stop, device=layout.starts.device))

    return plan.once("written tokens", lambda: plan.positions(find))


class Discrimination:
    """disc: for each word piece of a written sentence, was it replaced? The accuracies count the pieces between [CLS] and [SEP]."""

    heads: tuple[str, ...] = ("discriminate",)

    def __init__(self, weight_replaced: float, weight_kept: float) -> None:
        self.weight_replaced, self.weight_kept = weight_replaced, weight_kept

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Positions:
        return written_tokens(draws, plan)

    def value(self, asked: Positions, draws: Draws, states: States, true: Tensor) -> TermOutput:
        tokens = Tokens.of(draws)
        logits = draws.negatives.model.discriminate(states.at(asked))
        suspected = logits.argmax(dim=-1) == 0
        counters = {
            "disc/accuracy_replaced": fraction(suspected, tokens.replaced),
            "disc/accuracy_kept": fraction(~suspected, ~tokens.replaced & tokens.is_word),
        }
        return TermOutput({"disc": discrimination(logits, tokens.replaced, self.weight_replaced, self.weight_kept)}, counters)


class Correction:
    """corr: at the positions that had been masked, the original word piece from the written sentence."""

    heads: tuple[str, ...] = ("correct",)

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Positions:
        return written_tokens(draws, plan)

    def value(self, asked: Positions, draws: Draws, states: States, true: Tensor) -> TermOutput:
        tokens = Tokens.of(draws)
        logits = draws.negatives.model.correct(states.at(asked)[tokens.masked])
        target = tokens.original[tokens.masked]
        counters = {"corr/accuracy": fraction(logits.argmax(dim=-1) == target)}
        return TermOutput({"corr": word_cross_entropy(logits, target)}, counters)
