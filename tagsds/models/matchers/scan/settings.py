"""Settings of SCAN in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.errors import UserError
from tagsds.models.matchers.settings import MatcherSettings
from tagsds.settings import above_zero, one_of


@dataclass
class ScanSettings(MatcherSettings):
    """SCAN (arXiv 1803.08024); a temperature left out is the paper's."""

    kind: str = "scan"
    """scan"""
    direction: str = "t2i"
    """t2i (words attend to regions) or i2t (regions attend to words)"""
    pooling: str = "lse"
    """lse (LogSumExp) or avg, over the words (t2i) or regions (i2t)"""
    lambda_softmax: float | None = None
    """inverse temperature of the attention; left out: 9 for t2i, 4 for i2t"""
    lambda_lse: float | None = None
    """sharpness of LogSumExp; left out: 6 for t2i; for i2t it must be given, since the published one depends on the corpus"""

    def check(self, group: str) -> None:
        super().check(group)
        one_of(self, group, direction=("t2i", "i2t"), pooling=("lse", "avg"))
        above_zero(self, group, "lambda_softmax", "lambda_lse")

    def check_fresh(self, group: str) -> None:
        if (self.direction, self.pooling) == ("i2t", "lse") and self.lambda_lse is None:
            raise UserError(
                f"{group}.direction=i2t needs {group}.lambda_lse: published are 20 on COCO (recipe scan-i2t-coco) and 5 on "
                "Flickr30K (scan-i2t-flickr)."
            )

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {
            "direction": self.direction,
            "pooling": self.pooling,
            "lambda_softmax": self.lambda_softmax,
            "lambda_lse": self.lambda_lse,
        }
