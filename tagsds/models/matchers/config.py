"""Sizes that all matchers share, as a Hugging Face config; each matcher's folder adds its own."""

from __future__ import annotations

from transformers import PretrainedConfig


class MatcherConfig(PretrainedConfig):
    """What every matcher has.

    vocab_size, region_dim   of the shards
    word_size                width of a word embedding (300 in all three papers)
    embed_size               width of the joint space (VSRN 2048, SCAN and BFAN 1024)
    summary                  of the class: one sentence for the model card
    """

    model_type = "tagsds_matcher"
    summary = "A matcher of images and sentences that are encoded apart from one another."

    def __init__(
        self, vocab_size: int = 30522, region_dim: int = 2048, word_size: int = 300, embed_size: int = 1024, **kwargs
    ) -> None:
        self.vocab_size, self.region_dim = vocab_size, region_dim
        self.word_size, self.embed_size = word_size, embed_size
        super().__init__(**kwargs)
