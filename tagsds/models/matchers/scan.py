"""SCAN, stacked cross attention (arXiv 1803.08024), and what BFAN shares with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.models.matchers.attention import attended_cosine, pool
from tagsds.models.matchers.config import ScanConfig
from tagsds.models.matchers.matcher import Encoded, Matcher, initialise
from tagsds.models.matchers.text import TextEncoder, unit

CELLS = 2**24  # dot products held at a time where no gradient is wanted: 64 MiB each in fp32
LENGTH_GROUPS = 4  # images of like region counts are compared together, so that little is padded


class FragmentMatcher(Matcher):
    """Regions through one linear layer, words through a two-directional GRU, unit vectors both; `relate` makes of their dot
    products a similarity."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.image = nn.Linear(config.region_dim, config.embed_size)
        self.text = TextEncoder(config, bidirectional=True)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)

    def encode_images(self, images: Images) -> Encoded:
        regions = unit(self.image(images.regions.values.to(self.image.weight.dtype)))
        return Encoded(Ragged(regions, images.lengths).pad(0.0), images.lengths)

    def encode_captions(self, captions: Ragged) -> Encoded:
        return Encoded(unit(self.text.states(captions)), captions.lengths)

    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        rows = torch.argsort(images.lengths)
        parts = [self._compare(trimmed(images.select(part)), captions) for part in rows.chunk(LENGTH_GROUPS)]
        return torch.cat(parts)[torch.argsort(rows)]

    def _compare(self, images: Encoded, captions: Encoded) -> Tensor:
        cells = max(1, images.vectors[..., 0].numel() * captions.vectors.shape[1])  # of one caption
        block = len(captions) if torch.is_grad_enabled() else max(1, CELLS // cells)
        gram = images.vectors @ images.vectors.mT
        columns = []
        for start in range(0, len(captions), block):
            words, lengths = captions.vectors[start : start + block], captions.lengths[start : start + block]
            s = torch.einsum("ire,cle->icrl", images.vectors, words)
            word_gram = (words @ words.mT)[None]
            columns.append(self.relate(s, exists(images)[:, None], _exists(words, lengths)[None], gram[:, None], word_gram))
        return torch.cat(columns, dim=1)

    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        v, w = images.vectors, captions.vectors
        return self.relate(v @ w.mT, exists(images), exists(captions), v @ v.mT, w @ w.mT)

    def relate(self, s: Tensor, regions: Tensor, words: Tensor, region_gram: Tensor, word_gram: Tensor) -> Tensor:
        """s [..., R, L], masks [..., R] and [..., L], Gram matrices [..., R, R] and [..., L, L] -> [...]."""
        raise NotImplementedError


def trimmed(side: Encoded) -> Encoded:
    """Without the padding that no row of it needs."""
    longest = int(side.lengths.max()) if len(side) else 0
    return Encoded(side.vectors[:, :longest], side.lengths)


def exists(side: Encoded) -> Tensor:
    """bool [N, F]: which fragments of a padded row are there."""
    return _exists(side.vectors, side.lengths)


def _exists(vectors: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(vectors.shape[1], device=vectors.device) < lengths[:, None]


class SCAN(FragmentMatcher):
    """Words attend to regions (t2i) or regions to words (i2t); cosines pooled by LogSumExp or mean."""

    config_class = ScanConfig

    def relate(self, s: Tensor, regions: Tensor, words: Tensor, region_gram: Tensor, word_gram: Tensor) -> Tensor:
        config = self.config
        if config.direction == "t2i":
            cosine, queries = attended_cosine(s.mT, words, regions, region_gram, config.lambda_softmax), words
        else:
            cosine, queries = attended_cosine(s, regions, words, word_gram, config.lambda_softmax), regions
        return pool(cosine, queries, config.pooling, config.lambda_lse)
