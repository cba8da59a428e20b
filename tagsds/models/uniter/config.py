"""Sizes of the encoder, as a Hugging Face config."""

from __future__ import annotations

from transformers import PretrainedConfig


class UniterConfig(PretrainedConfig):
    """UNITER's sizes (base: 12 layers, 768, 12 heads, 3072; arXiv 1909.11740).

    region_dim           width of a region feature in the shards
    num_region_classes   classes of the soft labels; 0 where the shards carry none
    trained_heads        heads that some stage has trained: a later stage initialises only the others
    discriminate_version order of the discrimination head's two outputs. 2: column 1 = the token is the original, as published;
                         1 (a config.json without the key): column 1 = it was replaced; `UniterModel.from_pretrained` turns it
    probe_queries        attention queries of each side of the probe of cascade mining; 0: the model has none
    """

    model_type = "tagsds_uniter"
    summary = (
        "A single-stream encoder of word pieces and image regions (UNITER, arXiv 1909.11740) that scores how well a "
        "sentence describes a picture, and writes and mends sentences (TAGS-DC)."
    )

    def __init__(
        self,
        vocab_size: int = 28996,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        region_dim: int = 2048,
        num_region_classes: int = 1601,
        trained_heads: list[str] | None = None,
        discriminate_version: int = 2,
        probe_queries: int = 0,
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.region_dim = region_dim
        self.num_region_classes = num_region_classes
        self.trained_heads = list(trained_heads or [])
        self.discriminate_version = discriminate_version
        self.probe_queries = probe_queries
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """A config.json without `discriminate_version` was written before the key existed: it is of version 1."""
        return super().from_dict({"discriminate_version": 1} | config_dict, **kwargs)
