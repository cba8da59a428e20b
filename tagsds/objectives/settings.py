"""Settings of pre-training: group `pretrain` of a recipe (UNITER, arXiv 1909.11740)."""

from __future__ import annotations

from dataclasses import dataclass, field

from tagsds.errors import UserError
from tagsds.settings import one_of, probability


@dataclass
class PretrainConfig:
    """Tasks of pre-training: group `pretrain` of a recipe."""

    mix: dict[str, int] = field(default_factory=lambda: {"itm": 2, "mlm": 2, "mrfr": 1, "mrckl": 1, "mrc": 0})
    """one task per optimiser step, drawn with these odds"""
    mask_probability: float = 0.15
    """share of word pieces (mlm) or regions (mrfr, mrckl, mrc) that are hidden, at least one"""
    wra_weight: float = 0.1
    """weight of the word-region alignment beside itm; 0: none"""
    kl_reduction: str = "mean"
    """of MRC-KL over the classes: mean (the released code, 1 / number of classes of the sum) or sum (the paper's text)"""

    def check(self, group: str) -> None:
        one_of(self, group, kl_reduction=("mean", "sum"))
        probability(self, group, "mask_probability")
        for task, odds in self.mix.items():
            if odds < 0:
                raise UserError(f"{group}.mix.{task}={odds} must not be negative.")
