"""What an objective returns to the loop for a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class StepOutput:
    """`total` is what backward is called on. `terms`: each loss before its weight. `counters`: (sum, weight) pairs, to be
    summed over micro-batches and ranks before dividing. `scores`: values for histograms. `forwards`: pairs forwarded."""

    total: Tensor
    terms: dict[str, Tensor]
    counters: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    forwards: int = 0


def fraction(hit: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A fraction as (hits, cases), both float32."""
    if valid is not None:
        hit = hit & valid
        return hit.sum().float(), valid.sum().float()
    return hit.sum().float(), torch.tensor(float(hit.numel()), device=hit.device)
