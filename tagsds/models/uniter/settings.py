"""Sizes of the encoder: group `model` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

BASE_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


@dataclass
class ModelConfig:
    """Sizes left out are the checkpoint's where `init` names one, and BERT base's from scratch; a size that contradicts the
    checkpoint is an error."""

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    dropout: float = 0.1
    """of hidden states"""
    attention_dropout: float = 0.1
    """of attention weights; 0 lets a CPU use the fused attention in training"""
    initializer_range: float = 0.02
    """standard deviation of fresh weights: BERT's 0.02 suits 768; a narrow model wants about 1 / sqrt(hidden_size)"""
