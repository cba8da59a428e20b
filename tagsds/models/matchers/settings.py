"""Settings of the matchers: group `matcher` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MatcherSettings:
    """The matcher of objective `matching`; a size or temperature left out is its paper's. With `init`, the checkpoint's count."""

    kind: str = "vsrn"
    """vsrn, scan or bfan"""
    word_size: int = 300
    embed_size: int | None = None
    graph_layers: int = 4
    """VSRN: region-graph convolutions"""
    image_norm: bool = False
    """VSRN: BatchNorm behind the GRU over regions (published for Flickr30K)"""
    column_norm: bool = False
    """VSRN: normalise each feature over the regions, as the released code does, in place of each region, as the paper says"""
    input_norm: bool = True
    """VSRN: with column_norm, also before the graph (published for COCO, not for Flickr30K)"""
    caption_hidden: int = 512
    """VSRN: width of the captioner"""
    caption_weight: float = 1.0
    """VSRN: of the captioning loss; 0 builds no captioner"""
    caption_dropout: float = 0.2
    """VSRN: of what enters the captioner's GRUs; with `init` also the recipe's"""
    caption_pieces: int = 60
    """VSRN: a longer caption is cut to so many word pieces for the captioner; with `init` also the recipe's"""
    direction: str = "t2i"
    """SCAN: t2i (words attend to regions) or i2t"""
    pooling: str = "lse"
    """SCAN: lse or avg"""
    focal: str = "equal"
    """BFAN: equal or prob"""
    lambda_softmax: float | None = None
    """SCAN, BFAN: inverse temperature of the attention"""
    lambda_lse: float | None = None
    """SCAN: sharpness of LogSumExp; for i2t it must be given, since the published one depends on the corpus"""
