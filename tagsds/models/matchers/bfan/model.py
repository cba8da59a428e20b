"""BFAN (arXiv 1909.11416): cross attention in both directions that leaves irrelevant fragments out.

Shapes as in matchers/matcher.py.
"""

from __future__ import annotations

from torch import Tensor

from tagsds.models.matchers.attention import attend, cosine, focus, mean
from tagsds.models.matchers.bfan.config import BfanConfig
from tagsds.models.matchers.matcher import FragmentMatcher, Side, known_option


class BFAN(FragmentMatcher):
    """Mean relevance of the words to the regions they focus on, plus that of the regions to their words: in [-2, 2]."""

    config_class = BfanConfig

    def __init__(self, config: BfanConfig) -> None:
        known_option("focal", config.focal, "equal", "prob")
        super().__init__(config)

    def relate(self, dots: Tensor, regions: Side, words: Side) -> Tensor:
        return self.one_way(dots, words, regions) + self.one_way(dots.mT, regions, words)

    def one_way(self, dots: Tensor, query: Side, context: Side) -> Tensor:
        """dots [..., Q, K] -> [...]."""
        weights = attend(dots, context.real, self.config.lambda_softmax)
        weights = focus(weights, context.real, self.config.focal)
        return mean(cosine(dots, weights, context.gram), query.real)
