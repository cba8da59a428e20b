"""Settings of VSRN in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.errors import UserError
from tagsds.models.matchers.settings import MatcherSettings
from tagsds.settings import not_negative, probability


@dataclass
class VsrnSettings(MatcherSettings):
    """VSRN (arXiv 1909.02701)."""

    kind: str = "vsrn"
    """vsrn"""
    graph_layers: int = 4
    """region-graph convolutions"""
    image_norm: bool = False
    """BatchNorm behind the GRU over regions (published for Flickr30K)"""
    column_norm: bool = False
    """normalise each feature over the regions, as the released code does, in place of each region, as the paper says"""
    input_norm: bool = True
    """with column_norm: normalise also before the graph (published for COCO, not for Flickr30K)"""
    caption_hidden: int = 512
    """width of the captioner; 0: none"""
    caption_weight: float = 1.0
    """weight of the captioning loss; 0 builds no captioner"""
    caption_dropout: float = 0.2
    """probability of dropout on what enters the captioner's GRUs; with `init` also the recipe's"""
    caption_pieces: int = 60
    """word pieces of a caption that the captioner is taught at most; a longer caption is cut; with `init` also the recipe's"""

    def check(self, group: str) -> None:
        super().check(group)
        not_negative(self, group, "graph_layers", "caption_hidden")
        probability(self, group, "caption_dropout")
        if self.caption_pieces < 2:
            raise UserError(f"{group}.caption_pieces={self.caption_pieces} must be 2 or more: [CLS] and what follows it.")

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {
            "graph_layers": self.graph_layers,
            "image_norm": self.image_norm,
            "column_norm": self.column_norm,
            "input_norm": self.input_norm,
            "caption_hidden": self.caption_hidden if self.caption_weight else 0,
            "caption_dropout": self.caption_dropout,
            "caption_pieces": self.caption_pieces,
        }

    def extra_weights(self) -> dict[str, float]:
        return {"captioning": self.caption_weight} if self.caption_weight else {}
