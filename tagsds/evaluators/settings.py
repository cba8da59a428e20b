"""Settings of the validation during training: group `validate` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from tagsds.settings import not_negative


@dataclass
class ValidateConfig:
    """Validation during training: group `validate` of a recipe."""

    every: int = 0
    """optimiser steps between two validations; 0 = none. The last step is validated where it is a multiple"""
    split: str = "dev"
    """of the shards"""
    first: int = 500
    """images of the split, from its start; recall falls with their number, so compare equal ones alone"""
    evaluators: list[str] = field(default_factory=lambda: ["recall"])
    """what is measured, by name (docs/extend/evaluator.md), with default settings"""
    keep: str = "recalls/rsum"
    """the figure whose best checkpoint is kept as export-best; of equal ones the earlier. A path in the results file"""
    patience: int = 0
    """validations in a row without a better figure after which the run stops; 0 = never"""
    shortlist: str = ""
    """a matcher's run: only what it ranks first is scored. Its reranked recalls stand for `recalls`, and evaluators that need all
    scores are left out"""
    rerank: int = 32
    """with a shortlist: how many of each query are scored"""

    def check(self, group: str) -> None:
        not_negative(self, group, "every", "patience")
