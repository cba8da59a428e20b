"""Settings of the retrieval objective's losses: group `loss` of a recipe (TAGS-DC, arXiv 2111.03349)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tagsds.losses.distillation import DistilConfig
from tagsds.losses.quintuplet import QuintupletConfig
from tagsds.negatives.offline import OfflineConfig
from tagsds.negatives.random import NegativesConfig
from tagsds.negatives.writer import SyntheticConfig


@dataclass
class LossConfig:
    """Weights and margins of the terms; a weight of zero leaves its term out, but for t2i and i2t, which are then only reported."""

    margin: float = 0.2
    """of the triplets t2i, i2t and syn, on s(I, T) in 0..1"""
    t2i: float = 1.0
    """weight of the triplet over hard images"""
    i2t: float = 1.0
    """weight of the triplet over hard captions"""
    syn: float = 0.0
    """lambda_syn, the triplet over written sentences. Beside teachers, without t2i and i2t, nothing holds the level of the logits:
    they rise until each sigmoid is near one and has no gradient; take loss.more.contrast_syn there. Without a weight of syn, mlm,
    disc, corr and that one, no sentence is written"""
    mlm: float = 0.0
    """lambda_mlm, the cross entropy at the masked positions that the sentences are written from"""
    disc: float = 0.0
    """lambda_disc, the discrimination of replaced word pieces"""
    corr: float = 0.0
    """lambda_corr, the correction of written sentences"""
    weight_replaced: float = 1.0
    """disc: of the cross entropy of a replaced token"""
    weight_kept: float = 0.11
    """disc: of an original token, [CLS] and [SEP] among them"""
    more: dict[str, float] = field(default_factory=dict)
    """weights of further terms, by their name in `tagsds.objectives.retrieval.TERMS`"""

    def check(self, group: str) -> None:
        """Any weight and margin may be tried."""

    @property
    def writes(self) -> bool:
        """Whether the encoder writes negative sentences."""
        return any((self.syn, self.mlm, self.disc, self.corr, self.more.get("contrast_syn", 0.0)))


class Settings(Protocol):
    """The groups of a run's settings that the objective reads."""

    loss: LossConfig
    negatives: NegativesConfig
    synthetic: SyntheticConfig
    distil: DistilConfig
    quintuplet: QuintupletConfig
    offline: OfflineConfig
