"""AOQ inside the encoder's objective: which offline pairs join the packed forward, and their loss (arXiv 2003.03669; method 6).

Shapes: B = true pairs, n = offline pairs of a true pair (0, 2 or 4, by the kind of the loss), K = hard negatives of a pair.

No publication joins AOQ and TAGS. Here the similarity is s = sigmoid(rank logit), as in the other ranking terms; T_on and I_on
are the hardest of the mined negatives, since an encoder that scores pairs one by one has no score matrix of its batch for free;
and each term, a sum over the batch in the paper, is divided by B, so that its scale is that of t2i and i2t, which are means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.config_offline import OfflineConfig, QuintupletConfig
from tagsds.data.bank import Bank
from tagsds.draw import Draw
from tagsds.formats.candidates import Candidates
from tagsds.losses.quintuplet import OFFLINE_TERMS, Similarities, quintuplet
from tagsds.negatives.offline import draw_quintuplet
from tagsds.negatives.random import Hard

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


def offline_pairs(
    kind: str, candidates: Candidates | None, offline: OfflineConfig, bank: Bank, captions: Tensor, draw: Draw
) -> OfflinePairs:
    """The offline pairs of each true pair (captions int64 [B]); none (n = 0) for the kinds without."""
    names = OFFLINE_TERMS.get(kind, ())
    if not names:
        nothing = captions.new_empty(0, len(captions))
        return OfflinePairs(nothing, nothing)
    assert candidates is not None, f"quintuplet.kind={kind} needs candidates"
    generator = draw.generator(bank.device, "offline quintuplet")
    off = draw_quintuplet(candidates, bank, captions, offline.first, offline.last, generator)
    pairs = {
        "offline_caption": (off.caption_off, bank.image_of_caption[captions]),
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


def quintuplet_terms(
    config: QuintupletConfig, true: Tensor, captions_on: tuple[Tensor, Tensor], images_on: tuple[Tensor, Tensor], off: Tensor
) -> dict[str, Tensor]:
    """{"aoq/<term>": float32 []}: the terms of the loss, divided by B.

    true   float [B]             captions_on, images_on   (S(I, T_on), valid) and (S(I_on, T), valid), [B] each
    off    float [n, B], scores of the offline pairs
    """
    similarities = Similarities(
        true=true,
        caption_on=captions_on[0],
        image_on=images_on[0],
        on_valid=torch.stack([captions_on[1], images_on[1]], dim=1),
        **{SCORES[name]: score for name, score in zip(OFFLINE_TERMS[config.kind], off)},
    )
    terms = quintuplet(
        similarities, config.kind, config.margin_on, config.margin_off, config.alpha, config.beta,
        config.detach, config.clamp, config.online,
    )  # fmt: skip
    return {f"aoq/{name}": term / len(true) for name, term in terms.items()}
