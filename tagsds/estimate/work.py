"""What one micro-batch computes: pairs, tokens and floating-point operations (FLOP), counted from the recipe.

B = batch.pairs, K = negatives.keep, C = negatives.count, M = synthetic.maskings, R = synthetic.refills, n = masked pieces of a
masking, t = tokens of a pair, l = layers, H = hidden width, F = intermediate width, V = vocabulary, D = feature width.
A multiplication with its addition counts as two operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.config import RunConfig
from tagsds.estimate.corpus import Corpus
from tagsds.negatives.cascade import SAMPLE
from tagsds.negatives.offline import images_in_ranks


@dataclass(frozen=True)
class Sizes:
    """Of the encoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """Of an encoder's config."""
        c = config
        return cls(c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.vocab_size)


@dataclass(frozen=True)
class Stream:
    """What one packed forward passes through the layers, in sums over its pairs; L = tokens of a pair.

    regions, rows     regions, and word pieces with regions, of the tables: each is embedded once
    tokens, squares   sum of L and of L^2
    keep, seen        stream positions whose last state is wanted, and the sum of L over them
    words             positions at which logits over the vocabulary are computed
    """

    regions: float = 0
    rows: float = 0
    tokens: float = 0
    squares: float = 0
    keep: float = 0
    seen: float = 0
    words: float = 0

    def features(self, sizes: Sizes, feature_dim: int) -> float:
        """FLOP of the regions' features, W_f f: 2 D H each."""
        return self.regions * 2 * feature_dim * sizes.hidden

    def flop(self, sizes: Sizes, feature_dim: int) -> float:
        """Of the forward alone, with nothing computed that is not needed:

        rows      2 D H a region, and 6 H^2 (first layer's q, k, v) a row of either table
        layers    6 H^2 (q, k, v; not in the first) + 2 H^2 (output) + 4 H F (feed-forward) + 4 L H (scores and their sums) a token;
                  the last layer has k and v of all tokens, everything else for `keep` alone
        logits    2 H^2 + 2 H V a position
        """
        H, F, layers = sizes.hidden, sizes.intermediate, sizes.layers
        behind = 2 * H * H + 4 * H * F
        idle = (self.tokens - self.keep) * 2 * H * H if layers > 1 else 0.0  # queries of the last layer that nothing keeps
        return (
            self.features(sizes, feature_dim)
            + self.rows * 6 * H * H
            + (layers - 1) * (self.tokens * (6 * H * H + behind) + 4 * H * self.squares)
            - idle
            + self.keep * behind + 4 * H * self.seen
            + self.words * (2 * H * H + 2 * H * sizes.vocabulary)
        )  # fmt: skip

    def flop_with_gradient(self, sizes: Sizes, feature_dim: int) -> float:
        """Forward and backward: each product has two gradients, but those of the features have one, that of W_f."""
        return 3 * self.flop(sizes, feature_dim) - self.features(sizes, feature_dim)


@dataclass(frozen=True)
class Forward:
    """One packed forward.

    pairs           that pass through the layers
    texts, images   distinct rows of the two tables, each embedded once
    keep            stream positions whose last state is wanted
    words           positions at which logits over the vocabulary are computed
    """

    pairs: float = 0
    texts: float = 0
    images: float = 0
    keep: float = 0
    words: float = 0

    def stream(self, corpus: Corpus) -> Stream:
        """As if every pair had the mean length."""
        t, regions = corpus.tokens, self.images * corpus.regions_of_image
        rows = self.texts * corpus.pieces + regions
        return Stream(regions, rows, self.pairs * t, self.pairs * t * t, self.keep, self.keep * t, self.words)

    def flop(self, corpus: Corpus, sizes: Sizes) -> float:
        """Of the forward alone (`Stream.flop`)."""
        return self.stream(corpus).flop(sizes, corpus.feature_dim)


@dataclass(frozen=True)
class Work:
    """Forwards of a micro-batch of the encoder. `mined`: random or offline negatives; `refilled`: maskings, to draw the refills;
    `written`: the written sentences; none with a gradient. `trained`: the one with a gradient. `taught`: what each teacher scores;
    it counts in `tagsds.estimate.teachers`."""

    mined: Forward
    refilled: Forward
    written: Forward
    trained: Forward
    taught: Forward = Forward()

    def flop(self, corpus: Corpus, sizes: Sizes, checkpointing: bool) -> float:
        """Backward costs twice its forward (each product has two gradients): 3 x the forward with a gradient, 4 x where the
        layers are recomputed (Korthikanti et al. 2022, arXiv 2205.05198, section 5.1)."""
        without = sum(part.flop(corpus, sizes) for part in (self.mined, self.refilled, self.written))
        return without + (4 if checkpointing else 3) * self.trained.flop(corpus, sizes)


def retrieval_work(config: RunConfig, corpus: Corpus) -> Work:
    """Of the objective `retrieval` (objectives/retrieval/draws.py and terms/):

    mined      2 B C pairs: C images for each of B captions, C captions for each of B images (B^2 where shared; B (C + images in the
               ranks) from offline candidates, none where they are not scored)
    refilled   B M pairs, n positions each
    written    at most B M R sentences: the filters have dropped none
    trained    B true pairs, 2 B K hard ones, B K written ones (syn, disc, corr), B M maskings (mlm), up to 4 B offline pairs, and
               those of 2 B offline candidates that teachers judge (distil.offline)
    taught     B true pairs, 2 B K hard ones, the candidates, and the written ones with distil.synthetic
    """
    B, loss, negatives, synthetic = config.batch.pairs, config.loss, config.negatives, config.synthetic
    count, keep = negatives.scored + SAMPLE * bool(negatives.cascade), negatives.keep
    images = min(count, images_in_ranks(config.offline.first, config.offline.last)) if config.offline.replace_random else count
    mined = Forward(B * (count + images), B * (1 + count), B * (1 + images), B * (count + images))
    hard = 2.0 * B * keep
    if negatives.shared:
        mined, hard = Forward(B * B, B, B, B * B), 2.0 * B * min(keep, B - 1)
    if config.offline.replace_random and not config.offline.score:
        mined, hard = Forward(), B * (keep + min(keep, images_in_ranks(config.offline.first, config.offline.last)))
    refilled = written = Forward()
    sentences = maskings = 0.0
    if loss.writes:
        drawn = B * synthetic.maskings
        refilled = Forward(drawn, drawn, B, drawn * corpus.masked, drawn * corpus.masked)
        written = Forward(drawn * synthetic.refills, drawn * synthetic.refills, B, drawn * synthetic.refills)
        sentences = B * min(keep, synthetic.maskings * synthetic.refills)  # syn is counted whatever its weight
        maskings = drawn * bool(loss.mlm)
    offline = {"": 0, "online": 0, "offline": 2}.get(config.quintuplet.kind, 4) * B
    judged = 2.0 * B * config.distil.offline
    ranked = B + hard + judged + offline
    pairs = ranked + sentences + maskings
    read = ranked + sentences  # [CLS] of what is ranked
    read += sentences * corpus.pieces * bool(loss.disc) + maskings * corpus.masked
    words = maskings * corpus.masked + sentences * corpus.masked * bool(loss.corr)
    both = (ranked + B) / 2  # captions, and images, of those pairs
    trained = Forward(pairs, both + sentences + maskings, both, read, words)
    listed, seen = B + hard + judged, sentences * bool(config.distil.synthetic)
    taught = Forward(listed + seen, (listed + B) / 2 + seen, (listed + B) / 2, listed + seen)
    return Work(mined, refilled, written, trained, taught)


def pretrain_work(config: RunConfig, corpus: Corpus) -> Work:
    """Of the objective `pretrain`: B pairs, one task a step; as if every step were `mlm`, the dearest for a wide vocabulary, at
    pretrain.mask_probability of the pieces, with the states of all positions kept (itm with word-region alignment)."""
    B = config.batch.pairs
    words = B * max(1.0, config.pretrain.mask_probability * corpus.pieces)
    none = Forward()
    return Work(none, none, none, Forward(B, B, B, B * corpus.tokens, words))
