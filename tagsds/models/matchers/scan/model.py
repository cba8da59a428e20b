"""SCAN (arXiv 1803.08024): stacked cross attention between regions and words.

Shapes as in matchers/matcher.py.
"""

from __future__ import annotations

from torch import Tensor

from tagsds.models.matchers.attention import attend, cosine, log_sum_exp, mean
from tagsds.models.matchers.matcher import FragmentMatcher, Side, known_option
from tagsds.models.matchers.scan.config import ScanConfig


class SCAN(FragmentMatcher):
    """t2i: each word against the regions it attends to, pooled over the words; i2t: the mirror image."""

    config_class = ScanConfig

    def __init__(self, config: ScanConfig) -> None:
        known_option("direction", config.direction, "t2i", "i2t")
        known_option("pooling", config.pooling, "lse", "avg")
        super().__init__(config)

    def relate(self, dots: Tensor, regions: Side, words: Side) -> Tensor:
        query, context = words, regions
        if self.config.direction == "i2t":
            dots, query, context = dots.mT, regions, words
        weights = attend(dots, context.real, self.config.lambda_softmax)
        relevance = cosine(dots, weights, context.gram)
        if self.config.pooling == "avg":
            return mean(relevance, query.real)
        return log_sum_exp(relevance, query.real, self.config.lambda_lse)
