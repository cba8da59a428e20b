from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.models.matchers import MatcherSettings
from tagsds.settings import above_zero, not_negative


@dataclass
class MeanSettings(MatcherSettings):
    """Mean of the regions against mean of the words."""

    kind: str = "mean"
    """mean"""
    scale: float = 1.0
    """what the cosine is multiplied with"""
    length_weight: float = 0.0
    """weight of the loss on the length of the projected regions"""

    def check(self, group: str) -> None:
        super().check(group)
        above_zero(self, group, "scale")
        not_negative(self, group, "length_weight")

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"scale": self.scale}

    def extra_weights(self) -> dict[str, float]:
        return {"length": self.length_weight} if self.length_weight else {}
