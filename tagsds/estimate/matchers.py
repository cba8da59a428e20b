"""Memory and operations of a micro-batch of a matcher (VSRN, SCAN, BFAN): of the large tensors alone, to a factor of two.

B = batch.pairs, R = regions of an image, L = word pieces of a caption, E = matcher.embed_size, D = feature width, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.config import RunConfig
from tagsds.estimate.corpus import Corpus
from tagsds.estimate.memory import FEWER_PAIRS
from tagsds.estimate.parts import Part


@dataclass(frozen=True)
class MatcherWork:
    """Read off the settings: E, the word width, region-graph layers, the captioner's width (0: none), images and captions encoded
    for a true pair (3 with offline negatives), directions of the text's GRU, and whether all fragments are compared."""

    embed: int
    word: int
    graph: int
    caption: int
    rows: int
    directions: int
    fragments: bool


def matcher_work(config: RunConfig, model: Any) -> MatcherWork:
    found = model.config
    rows = 1 if config.quintuplet.kind in ("", "online") else 3
    one_vector = model.vectors is not None
    graph, caption = getattr(found, "graph_layers", 0), getattr(found, "caption_hidden", 0)
    return MatcherWork(found.embed_size, found.word_size, graph, caption, rows, 1 if one_vector else 2, not one_vector)


def matcher_parts(work: MatcherWork, config: RunConfig, corpus: Corpus, w: int, vocabulary: int) -> list[Part]:
    """Kept for backward.

    regions      features D (2 + w), projected and normalised 3 E, a graph layer 6 E, VSRN's GRU over regions 6 E, padded
    words        word width, GRU 6 E a direction, padded
    comparison   B^2 L R products in fp32, nine of that size through attention and cosine (SCAN, BFAN); B^2 (VSRN)
    captioner    logits V a piece: w + 12, and the attention over regions at each piece, 2 x R x width
    """
    B, E, rows = config.batch.pairs, work.embed, work.rows
    regions, words = B * rows * corpus.most_regions, B * rows * corpus.longest_text
    image = regions * ((2 + w) * corpus.feature_dim + w * E * (3 + 6 * work.graph + (0 if work.fragments else 6)))
    text = words * w * (work.word + 6 * E * work.directions)
    products = corpus.longest_text * corpus.most_regions if work.fragments else 1
    compared = 4 * 9 * products * (B * B + 4 * B * (rows > 1))
    parts = [Part("regions and words of a micro-batch (roughly)", image + text, at="backward", remedy=FEWER_PAIRS),
             Part("comparison of all images and captions (roughly)", compared, at="backward", remedy=FEWER_PAIRS)]  # fmt: skip
    if work.caption:
        of_piece = vocabulary * (2 * w + 12) + 2 * w * corpus.most_regions * work.caption
        parts.append(Part("captioner (roughly)", B * corpus.pieces * of_piece, at="backward", remedy=FEWER_PAIRS))
    return parts


def matcher_flop(work: MatcherWork, config: RunConfig, corpus: Corpus, vocabulary: int) -> float:
    """3 x the forward: 2 D E a region, 8 E^2 a region and graph layer, 12 E^2 a region (VSRN's GRU), 6 (word E + E^2) a piece and
    direction; 2 E a product of fragments and about 2 R more for the cosine; the captioner's logits 2 width V a piece."""
    B, E, rows = config.batch.pairs, work.embed, work.rows
    regions, words = B * rows * corpus.regions_of_image, B * rows * corpus.pieces
    forward = regions * (2 * corpus.feature_dim * E + 8 * E * E * work.graph + 12 * E * E * (not work.fragments))
    forward += words * 6 * (work.word * E + E * E) * work.directions
    products = corpus.pieces * corpus.regions_of_image * (2 * E + 2 * corpus.regions_of_image) if work.fragments else 2 * E
    forward += products * (B * B + 4 * B * (rows > 1))
    return 3 * (forward + B * corpus.pieces * 2 * work.caption * vocabulary)
