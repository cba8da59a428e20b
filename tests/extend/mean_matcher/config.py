from __future__ import annotations

from tagsds.models.matchers import MatcherConfig


class MeanConfig(MatcherConfig):
    """scale   what the cosine is multiplied with"""

    model_type = "tagsds_mean"
    summary = "Mean of the regions against mean of the words."

    def __init__(self, scale: float = 1.0, **kwargs) -> None:
        self.scale = scale
        super().__init__(**kwargs)
