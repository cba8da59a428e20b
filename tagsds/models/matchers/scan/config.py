"""Sizes and options of SCAN, as a Hugging Face config."""

from __future__ import annotations

from tagsds.models.matchers.config import MatcherConfig


class ScanConfig(MatcherConfig):
    """SCAN (arXiv 1803.08024).

    direction        t2i: each word attends to the regions; i2t: each region attends to the words
    pooling          lse (LogSumExp) or avg, over words (t2i) or regions (i2t)
    lambda_softmax   inverse temperature of the attention; None: 9 for t2i, 4 for i2t
    lambda_lse       sharpness of LogSumExp; None: 6 for t2i, 5 for i2t
    """

    model_type = "tagsds_scan"
    summary = "SCAN (arXiv 1803.08024): stacked cross attention between regions and words."

    def __init__(
        self, direction: str = "t2i", pooling: str = "lse", lambda_softmax: float | None = None,
        lambda_lse: float | None = None, **kwargs,
    ) -> None:  # fmt: skip
        self.direction, self.pooling = direction, pooling
        self.lambda_softmax = lambda_softmax if lambda_softmax is not None else (9.0 if direction == "t2i" else 4.0)
        self.lambda_lse = lambda_lse if lambda_lse is not None else (6.0 if direction == "t2i" else 5.0)
        super().__init__(**kwargs)
