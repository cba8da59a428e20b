"""The quintuplet loss of AOQ with the encoder's own score (arXiv 2003.03669).

Shapes: B = true pairs, n = offline pairs of a true pair (0, 2 or 4, by the kind of the loss), K = hard negatives of a pair.

No publication joins AOQ and TAGS. Here the similarity is s = sigmoid(rank logit), as in the other ranking terms; T_on and I_on
are the hardest of the mined negatives, since an encoder that scores pairs one by one has no score matrix of its batch for free;
and each term, a sum over the batch in the paper, is divided by B, so that its scale is that of t2i and i2t, which are means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.losses.quintuplet import OFFLINE_TERMS, QuintupletConfig, Similarities, quintuplet
from tagsds.negatives.offline import draw_quintuplet
from tagsds.negatives.random import Hard
from tagsds.objectives.output import fraction
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.ranking import hard_captions, hard_images
from tagsds.objectives.retrieval.terms.term import TermOutput

SCORES = {  # the field of Similarities that a term reads
    "offline_caption": "caption_off",
    "offline_image": "image_off",
    "offline_both": "both_off",
    "offline_others": "others_off",
}


@dataclass(frozen=True)
class OfflinePairs:
    """captions, images int64 [n, B]. Rows as in OFFLINE_TERMS: (T_off, I), (T, I_off), (T_off, I_off), (T'_off, I'_off)."""

    captions: Tensor
    images: Tensor


def offline_pairs(kind: str, draws: Draws) -> OfflinePairs:
    """The offline pairs of each true pair; none (n = 0) for the kinds without."""
    names, captions, bank = OFFLINE_TERMS[kind], draws.captions, draws.bank
    if not names:
        nothing = captions.new_empty(0, len(captions))
        return OfflinePairs(nothing, nothing)
    assert draws.candidates is not None, f"quintuplet.kind={kind} needs candidates"
    generator = draws.draw.generator(bank.device, "offline quintuplet")
    offline = draws.negatives.offline
    off = draw_quintuplet(draws.candidates, bank, captions, offline.first, offline.last, generator)
    pairs = {
        "offline_caption": (off.caption_off, draws.images),
        "offline_image": (captions, off.image_off),
        "offline_both": (off.caption_off, off.image_off),
        "offline_others": (off.other_caption, off.other_image),
    }
    return OfflinePairs(torch.stack([pairs[name][0] for name in names]), torch.stack([pairs[name][1] for name in names]))


def hardest_of(scores: Tensor, hard: Hard, ordered: bool) -> tuple[Tensor, Tensor]:
    """The score [B] of each pair's hardest negative and whether there is one: scores float [B, K]. The first where mining has
    ordered them (`ordered`); the highest of this very forward where they were drawn unscored."""
    if ordered:
        at = torch.zeros_like(hard.index[:, :1])
    else:
        at = scores.detach().masked_fill(~hard.valid, -torch.inf).argmax(dim=1, keepdim=True)
    return scores.gather(1, at)[:, 0], hard.valid.gather(1, at)[:, 0]


@dataclass
class Asked:
    """Where the online and the offline pairs stand in the forward."""

    images_on: Place
    captions_on: Place
    off: Place
    shape: torch.Size


class Quintuplet:
    """The terms of `losses.quintuplet`, each divided by B and named "aoq/<term>"."""

    heads: tuple[str, ...] = ()

    def __init__(self, config: QuintupletConfig) -> None:
        self.config = config

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Asked:
        pairs = offline_pairs(self.config.kind, draws)
        off = plan.captions(pairs.captions, pairs.images)
        return Asked(hard_images(draws, plan), hard_captions(draws, plan), off, pairs.images.shape)

    def value(self, asked: Asked, draws: Draws, states: States, true: Tensor) -> TermOutput:
        config = self.config
        images, captions = draws.hard
        ordered = draws.hard_are_ordered
        caption_on = hardest_of(states.scores(asked.captions_on).view_as(captions.index), captions, ordered)
        image_on = hardest_of(states.scores(asked.images_on).view_as(images.index), images, ordered)
        off = states.scores(asked.off).view(asked.shape)
        similarities = Similarities(
            true=true,
            caption_on=caption_on[0],
            image_on=image_on[0],
            on_valid=torch.stack([caption_on[1], image_on[1]], dim=1),
            **{SCORES[name]: score for name, score in zip(OFFLINE_TERMS[config.kind], off)},
        )
        terms = quintuplet(similarities, config)
        counters = {"rank/true_above_offline": fraction(true > off)} if len(off) else {}
        return TermOutput({f"aoq/{name}": term / len(true) for name, term in terms.items()}, counters)
