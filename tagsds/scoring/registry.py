"""The scorers by the names that model classes give in `scored_by`. A new one is a line here."""

from __future__ import annotations

from typing import Any

import torch

from tagsds.scoring.matcher_scorer import MatcherScorer
from tagsds.scoring.protocol import PairScorer, RetrievalModel
from tagsds.scoring.scorer import Scorer

SCORERS: dict[str, Any] = {
    "pairs": Scorer,
    "sides": MatcherScorer,
}


def scorer_of(model: RetrievalModel, max_tokens: int | None = None, dtype: torch.dtype | None = None) -> PairScorer:
    """The scorer that the model's class names."""
    return SCORERS[model.scored_by](model, max_tokens, dtype)
