"""Sizes of the encoder: group `model` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from tagsds.settings import above_zero, probability

BASE_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


@dataclass
class ModelConfig:
    """Sizes left out are the checkpoint's where `init` names one, and BERT base's from scratch; a size that contradicts the
    checkpoint is an error."""

    hidden_size: int | None = None
    """width of the hidden states"""
    num_hidden_layers: int | None = None
    """transformer layers"""
    num_attention_heads: int | None = None
    """attention heads of a layer; `hidden_size` must be a multiple"""
    intermediate_size: int | None = None
    """width between the two linear layers of a feed-forward block"""
    dropout: float = 0.1
    """probability of dropout of hidden states"""
    attention_dropout: float = 0.1
    """probability of dropout of attention weights"""
    initializer_range: float = 0.02
    """standard deviation of fresh weights: BERT's 0.02 suits 768; a narrow model wants about 1 / sqrt(hidden_size)"""
    word_vectors: str = ""
    """a text file with a word and its numbers on each line (GloVe's, for example), with which the embeddings of whole words begin
    in a model from scratch; vectors wider than `hidden_size` are taken on their main axes. Empty: all are drawn"""

    def check(self, group: str) -> None:
        above_zero(self, group, *BASE_SIZES)
        probability(self, group, "dropout", "attention_dropout")
