"""Sizes and options of BFAN, as a Hugging Face config."""

from __future__ import annotations

from tagsds.models.matchers.config import MatcherConfig


class BfanConfig(MatcherConfig):
    """BFAN (arXiv 1909.11416).

    focal            equal or prob: with which confidence fragments vote on what is irrelevant
    lambda_softmax   inverse temperature of the attention
    """

    model_type = "tagsds_bfan"
    summary = "BFAN (arXiv 1909.11416): focal attention between regions and words, in both directions."

    def __init__(self, focal: str = "equal", lambda_softmax: float = 20.0, **kwargs) -> None:
        self.focal, self.lambda_softmax = focal, lambda_softmax
        super().__init__(**kwargs)
