"""Sizes of VSRN, as a Hugging Face config."""

from __future__ import annotations

import warnings

from tagsds.models.matchers.config import MatcherConfig


class VsrnConfig(MatcherConfig):
    """VSRN (arXiv 1909.02701).

    graph_layers        residual region-graph convolutions
    image_norm          BatchNorm behind the GRU over regions (its Flickr30K model has it)
    column_norm         normalise each feature over the regions of its image, before and after the graph, where the paper normalises
                        each region: what the released code does, and what its checkpoints were trained with
    input_norm          with column_norm: also before the graph (the released code does so for COCO and not for Flickr30K)
    caption_hidden      width of the captioner; 0: none
    caption_word_size   width of the captioner's own word embedding; None: word_size
    caption_dropout     of what enters the captioner's two GRUs
    caption_pieces      word pieces of a caption, [CLS] and [SEP] among them, that the captioner is taught at most
    captioner_version   2: the released captioner (captioner.py). 1 (a config.json without the key): an earlier one of another form,
                        whose weights are left out on loading, so that caption_hidden becomes 0
    """

    model_type = "tagsds_vsrn"
    summary = "VSRN (arXiv 1909.02701): one vector an image and one a caption; their cosine is the similarity."

    def __init__(
        self, embed_size: int = 2048, graph_layers: int = 4, image_norm: bool = False,
        column_norm: bool = False, input_norm: bool = True, caption_hidden: int = 512,
        caption_word_size: int | None = None, caption_dropout: float = 0.2, caption_pieces: int = 60,
        captioner_version: int = 2, **kwargs,
    ) -> None:  # fmt: skip
        super().__init__(embed_size=embed_size, **kwargs)
        self.graph_layers, self.image_norm = graph_layers, image_norm
        self.column_norm, self.input_norm = column_norm, input_norm
        self.caption_word_size = self.word_size if caption_word_size is None else caption_word_size
        self.caption_dropout, self.caption_pieces = caption_dropout, caption_pieces
        self.caption_hidden, self.captioner_version = caption_hidden, 2
        if captioner_version == 1 and caption_hidden:
            self.caption_hidden = 0
            warnings.warn(
                "this VSRN's captioner is of an earlier form and is left out; similarities do not depend on it, and training on "
                "with a captioning loss begins a new one.",
                stacklevel=2,
            )

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """A config.json without `captioner_version` was written before the key existed: it is of version 1."""
        return super().from_dict({"captioner_version": 1} | config_dict, **kwargs)
