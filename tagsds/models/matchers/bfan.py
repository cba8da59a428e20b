"""BFAN, bidirectional focal attention (arXiv 1909.11416)."""

from __future__ import annotations

from torch import Tensor

from tagsds.models.matchers.attention import attended_cosine, pool
from tagsds.models.matchers.config import BfanConfig
from tagsds.models.matchers.scan import FragmentMatcher


class BFAN(FragmentMatcher):
    """Both directions, each over the fragments that matter to the one that attends; the mean cosines are added."""

    config_class = BfanConfig

    def relate(self, s: Tensor, regions: Tensor, words: Tensor, region_gram: Tensor, word_gram: Tensor) -> Tensor:
        sharpness, focal = self.config.lambda_softmax, self.config.focal
        of_words = attended_cosine(s.mT, words, regions, region_gram, sharpness, focal)
        of_regions = attended_cosine(s, regions, words, word_gram, sharpness, focal)
        return pool(of_words, words, "avg") + pool(of_regions, regions, "avg")
