"""Settings that all matchers share: group `matcher` of a recipe. Each matcher's folder adds its own, and checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.settings import above_zero


@dataclass
class MatcherSettings:
    """The matcher of objective `matching`; a size left out is its paper's. With `init`, the checkpoint's sizes count."""

    kind: str = ""
    """which matcher: a key of `tagsds.models.matchers.MATCHERS`"""
    word_size: int = 300
    """width of a word embedding"""
    embed_size: int | None = None
    """width of the joint space; left out: the paper's (VSRN 2048, SCAN and BFAN 1024)"""

    def check(self, group: str) -> None:
        """UserError for a value that cannot be right."""
        above_zero(self, group, "word_size", "embed_size")

    def check_fresh(self, group: str) -> None:
        """UserError for what a matcher from scratch lacks, and a checkpoint would give."""

    def sizes(self) -> dict[str, Any]:
        """Keyword arguments of the kind's config class, but for those of the shards; None stands for the class's default."""
        return {"word_size": self.word_size, "embed_size": self.embed_size}

    def extra_weights(self) -> dict[str, float]:
        """Weights of the losses that the matcher itself adds (`Matcher.extra_losses`), by name; those left out are not computed."""
        return {}
