"""The scorers by the names that model classes give in `scored_by`. A new one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tagsds.scoring.matcher_scorer import MatcherScorer
from tagsds.scoring.protocol import PairScorer, RetrievalModel
from tagsds.scoring.scorer import Scorer

SCORERS: dict[str, Any] = {
    "pairs": Scorer,
    "sides": MatcherScorer,
}


def scorer_of(
    model: RetrievalModel, max_tokens: int | None = None, dtype: torch.dtype | None = None,
    lockstep: Callable[[int], int] = lambda chunks: chunks,
) -> PairScorer:  # fmt: skip
    """The scorer that the model's class names. `lockstep`: see `Scorer`; training under ZeRO-3 gives it."""
    return SCORERS[model.scored_by](model, max_tokens, dtype, lockstep)
