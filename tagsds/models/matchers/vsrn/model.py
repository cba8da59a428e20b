"""VSRN (arXiv 1909.02701): one vector an image and one a caption, from reasoning over regions.

Shapes as in matchers/matcher.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.draw import seed_of
from tagsds.errors import UserError
from tagsds.models.matchers.attention import at_least_float32, unit
from tagsds.models.matchers.images import RegionGraph, RegionProjection, RowNorm, unit_columns
from tagsds.models.matchers.matcher import Encoded, Matcher, full_precision
from tagsds.models.matchers.text import CaptionEncoder, run_gru
from tagsds.models.matchers.vsrn.captioner import Captioner
from tagsds.models.matchers.vsrn.config import VsrnConfig
from tagsds.models.matchers.vsrn.settings import VsrnSettings


class VSRN(Matcher):
    """Projection, graph convolutions, GRU over the regions in the detector's order; a GRU over the words; cosine."""

    config_class = VsrnConfig

    def __init__(self, config: VsrnConfig) -> None:
        super().__init__(config)
        width = config.embed_size
        self.project = RegionProjection(config)
        self.graph = nn.ModuleList(RegionGraph(width) for _ in range(config.graph_layers))
        self.region_gru = nn.GRU(width, width, batch_first=True)
        self.image_norm = RowNorm(width) if config.image_norm else None
        self.text = CaptionEncoder(config, bidirectional=False)
        self.captioner = Captioner(config) if config.caption_hidden else None
        self.post_init()

    def encode_images(self, images: Images) -> Encoded:
        """With `states`, the normalised region states that enter the GRU."""
        regions = self.project(images)
        if self.config.column_norm and self.config.input_norm:
            regions = unit_columns(regions)
        for layer in self.graph:
            regions = layer(regions)
        if self.config.column_norm:
            states = unit_columns(regions)
        else:
            states = Ragged(unit(regions.values).to(regions.values.dtype), regions.lengths)
        last = run_gru(self.region_gru, states)[1].squeeze(0)
        if self.image_norm is not None:
            last = self.image_norm(last)
        return whole(last, states)

    def encode_captions(self, captions: Ragged) -> Encoded:
        return whole(self.text(captions)[1])

    def embed(self, images: Images | None = None, captions: Ragged | None = None) -> Tensor:
        """Unit vectors of one side, float32 [N, E], whose products are the similarities: for an index over many."""
        if (images is None) == (captions is None):
            raise ValueError("embed takes images or captions, one of them")
        side = self.encode_images(images) if images is not None else self.encode_captions(captions)  # type: ignore[arg-type]
        return side.vectors.squeeze(1)

    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        with full_precision(images.vectors):
            return at_least_float32(images.vectors).squeeze(1) @ at_least_float32(captions.vectors).squeeze(1).T

    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        return (at_least_float32(images.vectors) * at_least_float32(captions.vectors)).sum(dim=-1).squeeze(1)

    def take_training_settings(self, settings: VsrnSettings, seed: int) -> None:  # type: ignore[override]
        """The recipe's dropout and longest caption; and a new captioner where the recipe trains one and the checkpoint has none."""
        config = self.config
        assert isinstance(config, VsrnConfig)
        config.caption_dropout, config.caption_pieces = settings.caption_dropout, settings.caption_pieces
        if self.captioner is not None:
            self.captioner.dropout.p, self.captioner.most = settings.caption_dropout, settings.caption_pieces
        elif settings.caption_weight and settings.caption_hidden:
            torch.manual_seed(seed_of(seed, "captioner"))
            config.caption_hidden, config.caption_word_size = settings.caption_hidden, settings.word_size
            self.captioner = Captioner(config).to(self.project.weight)

    def extra_losses(self, images: Encoded, captions: Ragged) -> dict[str, Tensor]:
        return {"captioning": self.captioning_loss(images, captions)}

    def captioning_loss(self, images: Encoded, captions: Ragged) -> Tensor:
        """-log p(caption p | row p of `images.states`), averaged over the captions (captioner.py): float32 []."""
        if self.captioner is None:
            raise UserError("this VSRN has no captioning head: set caption_hidden above 0, or train without the captioning loss.")
        if images.states is None or len(images.states) != len(captions):
            raise ValueError("the captioning loss needs the region states of one image a caption")
        return self.captioner(images.states, captions)


def whole(vectors: Tensor, states: Ragged | None = None) -> Encoded:
    """[N, E] -> one fragment a row."""
    vectors = unit(vectors)[:, None]
    return Encoded(vectors, vectors.new_ones(len(vectors)).long(), states)
