"""Settings of BFAN in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.models.matchers.settings import MatcherSettings
from tagsds.settings import above_zero, one_of


@dataclass
class BfanSettings(MatcherSettings):
    """BFAN (arXiv 1909.11416); a temperature left out is the paper's."""

    kind: str = "bfan"
    """bfan"""
    focal: str = "equal"
    """with which confidence fragments vote on what is irrelevant: equal or prob"""
    lambda_softmax: float | None = None
    """inverse temperature of the attention; left out: 20"""

    def check(self, group: str) -> None:
        super().check(group)
        one_of(self, group, focal=("equal", "prob"))
        above_zero(self, group, "lambda_softmax")

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"focal": self.focal, "lambda_softmax": self.lambda_softmax}
