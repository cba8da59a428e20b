"""The one interface of the matchers: encode images, encode captions, compare.

Shapes: I images, C captions, P pairs, R regions (most of a batch), L words, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.models.matchers.config import MatcherConfig


@dataclass
class Encoded:
    """One side in the joint space.

    vectors   float [N, F, E]: l2-normalised fragments, zero behind each row's length; F = 1 where one vector stands for all
    lengths   int64 [N]
    states    Ragged [*, E] or None: VSRN's region states, which its captioning loss decodes
    """

    vectors: Tensor
    lengths: Tensor
    states: Ragged | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def select(self, rows: Tensor) -> Encoded:
        """The given rows (int64 [M], repeats allowed), without `states`."""
        return Encoded(self.vectors[rows], self.lengths[rows])


class Matcher(PreTrainedModel):
    """`similarity(images, captions)` is what everything else calls; a matcher defines the four functions behind it."""

    config_class = MatcherConfig
    base_model_prefix = "matcher"

    def encode_images(self, images: Images) -> Encoded:
        raise NotImplementedError

    def encode_captions(self, captions: Ragged) -> Encoded:
        """`captions`: Ragged int64 word pieces with [CLS] and [SEP], which stand for SCAN's start and end words."""
        raise NotImplementedError

    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        """Every image with every caption: float32 [I, C]."""
        raise NotImplementedError

    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Row p of the images with row p of the captions: float32 [P]."""
        raise NotImplementedError

    def similarity(self, images: Images, captions: Ragged) -> Tensor:
        """float32 [I, C]."""
        return self.compare(self.encode_images(images), self.encode_captions(captions))

    def forward(self, images: Images, captions: Ragged) -> Tensor:
        return self.similarity(images, captions)


def initialise(module: nn.Module) -> None:
    """As the three papers' code begins: embeddings uniform(-0.1, 0.1), linear layers Xavier-uniform with zero bias, BatchNorm as the
    identity; recurrent layers keep torch's uniform(-1 / sqrt(E), 1 / sqrt(E))."""
    if isinstance(module, nn.Embedding):
        nn.init.uniform_(module.weight, -0.1, 0.1)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GRU | nn.GRUCell):
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -module.hidden_size**-0.5, module.hidden_size**-0.5)
