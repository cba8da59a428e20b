"""Online and offline hard negatives in one loss (AOQ, arXiv 2003.03669).

S = similarity. For a true pair (I, T) of a batch of B: T_on, I_on are the hardest of the batch; T_off, I_off are drawn from the
offline candidates; I'_off is the image of T_off, T'_off a caption of I_off.

    w_T [m_on + S(I, T_on) - S(I, T)]+    + w_I [m_on + S(I_on, T) - S(I, T)]+           online_caption, online_image
    + [m_off + S(I, T_off) - S(I, T)]+    + [m_off + S(I_off, T) - S(I, T)]+             offline_caption, offline_image
    + [m_off + S(I_off, T_off) - S(I, T)]+ + [m_off + S(I'_off, T'_off) - S(I, T)]+      offline_both, offline_others

    w_T = beta - (S(I, T_off) - S(I, T_on)) / alpha,   w_I = beta - (S(I_off, T) - S(I_on, T)) / alpha

so an online negative weighs more where it is about as hard as the offline one, less where the offline one is much harder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tagsds.errors import UserError
from tagsds.settings import above_zero, not_negative, one_of

OWN = ("offline_caption", "offline_image")
CROSSED = ("offline_both", "offline_others")
OFFLINE_TERMS = {"online": (), "offline": OWN, "quintuplet": OWN + CROSSED, "adaptive": OWN + CROSSED}
KINDS = tuple(OFFLINE_TERMS)


@dataclass
class QuintupletConfig:
    """The loss of AOQ: group `quintuplet` of a recipe."""

    kind: str = ""
    """empty: none; online, offline, quintuplet (all six terms, w = 1) or adaptive"""
    margin_on: float = 0.2
    """margin of the online terms, on the similarity"""
    margin_off: float = 0.0
    """margin of the offline terms, on the similarity"""
    alpha: float = 0.3
    """adaptive: what the difference of an offline and an online similarity is divided by in the weight w"""
    beta: float = 1.5
    """adaptive: the weight w where both similarities are equal"""
    detach: bool = False
    """no gradient through w; as published it flows"""
    clamp: bool = False
    """w at least 0; as published it may fall below"""
    online: bool = True
    """false: without the online terms (offline and quintuplet only)"""
    warmup_steps: int = 0
    """matchers: in the first steps the mean over all negatives of the batch stands for the hardest, and nothing offline counts"""
    weight: float = 1.0
    """encoder: of the loss, summed over its terms and averaged over the true pairs"""

    def check(self, group: str) -> None:
        one_of(self, group, kind=("", *KINDS))
        if not self.online and self.kind in ("online", "adaptive"):
            raise UserError(f"{group}.online=false does not go with {group}.kind={self.kind}; use offline or quintuplet.")
        above_zero(self, group, "alpha")
        not_negative(self, group, "weight", "warmup_steps")


@dataclass(frozen=True)
class Similarities:
    """float [B] each. The offline ones may be None where the kind has no such term.

    true          S(I, T)
    caption_on    S(I, T_on)           image_on    S(I_on, T)
    caption_off   S(I, T_off)          image_off   S(I_off, T)
    both_off      S(I_off, T_off)      others_off  S(I'_off, T'_off)
    on_valid      bool [B, 2]: whether the batch holds a caption, an image of another pair; None: all do
    """

    true: Tensor
    caption_on: Tensor
    image_on: Tensor
    caption_off: Tensor | None = None
    image_off: Tensor | None = None
    both_off: Tensor | None = None
    others_off: Tensor | None = None
    on_valid: Tensor | None = None


def quintuplet(s: Similarities, config: QuintupletConfig) -> dict[str, Tensor]:
    """{term: float32 []}, each summed over the batch; the loss is their sum. Terms that a kind lacks are not in it.

    config.kind   "" or online: the two online terms, w = 1. offline: these and the own pair's offline terms. quintuplet: all
                  six, w = 1. adaptive: all six with w as above. The other settings are described at `QuintupletConfig`.
    """
    kind = config.kind or "online"
    true = s.true.float()
    off = {
        "offline_caption": s.caption_off,
        "offline_image": s.image_off,
        "offline_both": s.both_off,
        "offline_others": s.others_off,
    }
    terms = {}
    if config.online:
        sides = (("online_caption", s.caption_on, s.caption_off), ("online_image", s.image_on, s.image_off))
        for column, (name, on, rival) in enumerate(sides):
            valid = torch.ones_like(true, dtype=torch.bool) if s.on_valid is None else s.on_valid[:, column]
            on = torch.where(valid, on.float(), 0.0)  # before the arithmetic, so that no gradient can be nan
            hinge = F.relu(config.margin_on + on - true)
            if kind == "adaptive":
                assert rival is not None
                w = config.beta - (rival.float() - on) / config.alpha
                w = w.detach() if config.detach else w
                hinge = (w.clamp(min=0) if config.clamp else w) * hinge
            terms[name] = torch.where(valid, hinge, 0.0).sum()
    for name in OFFLINE_TERMS[kind]:
        score = off[name]
        assert score is not None, f"{kind} needs the scores of {name}"
        terms[name] = F.relu(config.margin_off + score.float() - true).sum()
    return terms


def hardest_in_batch(scores: Tensor, image_of_row: Tensor, image_of_column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S(I_b, T_on) [B], S(I_on, T_b) [B] and on_valid bool [B, 2], from the scores of B images with B captions.

    scores                         float [B, B]: row b = image of pair b, column b = its caption
    image_of_row, image_of_column  int64 [B]: cells of one image are no negatives, though they lie off the diagonal (the released
                                   code takes them for such: docs/faults.md, 9a)

    Gradient flows through the chosen cells. A row or column without any other image is not valid; its score means nothing.
    """
    allowed = image_of_row[:, None] != image_of_column[None, :]
    masked = scores.detach().masked_fill(~allowed, -torch.inf)
    caption_on = scores.gather(1, masked.argmax(dim=1)[:, None])[:, 0]
    image_on = scores.gather(0, masked.argmax(dim=0)[None, :])[0]
    return caption_on, image_on, torch.stack([allowed.any(dim=1), allowed.any(dim=0)], dim=1)


def all_in_batch(scores: Tensor, image_of_row: Tensor, image_of_column: Tensor, margin: float) -> dict[str, Tensor]:
    """The online terms with the mean over all negatives of the batch in place of the hardest, for the first steps: from scratch the
    hardest alone can hold every score at one value, the hinge at the margin (VSE-infinity warms up so, arXiv 2011.04305).

    Arguments as in `hardest_in_batch`. {"online_caption", "online_image"}, each summed over the batch.
    """
    allowed = image_of_row[:, None] != image_of_column[None, :]
    true = scores.float().diagonal()
    terms = {}
    for name, dim, own in (("online_caption", 1, true[:, None]), ("online_image", 0, true[None, :])):
        hinge = torch.where(allowed, F.relu(margin + scores.float() - own), 0.0)
        terms[name] = (hinge.sum(dim=dim) / allowed.sum(dim=dim).clamp(min=1)).sum()
    return terms
