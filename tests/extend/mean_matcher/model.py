from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.models.matchers import Encoded, Matcher
from tagsds.models.matchers.images import RegionProjection
from tagsds.models.matchers.text import WordEmbedding
from tests.extend.mean_matcher.config import MeanConfig


class MeanMatcher(Matcher):
    """scale * cosine of the means. Each side is one vector, so that `embed` makes it fit for an index."""

    config_class = MeanConfig

    def __init__(self, config: MeanConfig) -> None:
        super().__init__(config)
        self.project = RegionProjection(config)
        self.word = WordEmbedding(config.vocab_size, config.embed_size)
        self.post_init()

    def encode_images(self, images: Images) -> Encoded:
        regions = self.project(images)
        return self.mean(regions, regions)

    def encode_captions(self, captions: Ragged) -> Encoded:
        return self.mean(Ragged(self.word(captions.values), captions.lengths))

    def mean(self, rows: Ragged, states: Ragged | None = None) -> Encoded:
        vectors = normalize(rows.pad(0).sum(1), dim=-1) * self.config.scale**0.5
        return Encoded(vectors[:, None], vectors.new_ones(len(vectors)).long(), states)

    def embed(self, images: Images | None = None, captions: Ragged | None = None) -> Tensor:
        return (self.encode_images(images) if images is not None else self.encode_captions(captions)).vectors.squeeze(1)

    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        return images.vectors.squeeze(1).float() @ captions.vectors.squeeze(1).float().T

    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        return (images.vectors.float() * captions.vectors.float()).sum(-1).squeeze(1)

    def extra_losses(self, images: Encoded, captions: Ragged) -> dict[str, Tensor]:
        """length: mean squared length of the projected regions of the batch's images."""
        return {"length": images.states.values.square().sum(-1).mean()}
