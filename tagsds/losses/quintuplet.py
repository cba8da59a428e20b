"""Online and offline hard negatives in one loss (AOQ, arXiv 2003.03669; method 6).

S = similarity. For a true pair (I, T) of a batch of B: T_on, I_on are the hardest of the batch; T_off, I_off are drawn from the
offline candidates; I'_off is the image of T_off, T'_off a caption of I_off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("online", "offline", "quintuplet", "adaptive")


@dataclass(frozen=True)
class Similarities:
    """float [B] each. The offline ones may be None for `online`.

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


def quintuplet(
    s: Similarities, kind: str, margin_on: float = 0.2, margin_off: float = 0.0, alpha: float = 0.3, beta: float = 1.5,
    detach: bool = False, clamp: bool = False, online: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """{term: float32 []}, each summed over the batch; the loss is their sum."""
    raise NotImplementedError


def hardest_in_batch(scores: Tensor, image_of_row: Tensor, image_of_column: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
