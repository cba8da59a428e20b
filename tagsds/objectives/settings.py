"""Settings of pre-training: group `pretrain` of a recipe (UNITER, arXiv 1909.11740)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PretrainConfig:
    """Tasks of pre-training: group `pretrain` of a recipe."""

    mix: dict[str, int] = field(default_factory=lambda: {"itm": 2, "mlm": 2, "mrfr": 1, "mrckl": 1, "mrc": 0})
    """one task per optimiser step, drawn with these odds"""
    mask_probability: float = 0.15
    """share of word pieces (mlm) or regions (mrfr, mrckl, mrc) that are hidden, at least one"""
    wra_weight: float = 0.1
    """of the word-region alignment beside itm; 0: none"""
    kl_reduction: str = "mean"
    """of MRC-KL over the classes: mean (the released code, 1 / number of classes of the sum) or sum (the paper's text)"""
