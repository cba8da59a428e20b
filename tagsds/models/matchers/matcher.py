"""The one interface of the matchers: encode images, encode captions, compare; and what SCAN and BFAN share behind it.

Shapes: I images, C captions, P pairs, R regions (most of a batch), L words, E joint width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.errors import UserError, nearest
from tagsds.models.matchers.attention import at_least_float32, unit
from tagsds.models.matchers.config import MatcherConfig
from tagsds.models.matchers.images import RegionProjection
from tagsds.models.matchers.settings import MatcherSettings
from tagsds.models.matchers.text import CaptionEncoder

BLOCK = 1 << 24  # dot products that `compare` holds at a time where no gradient is wanted: 64 MiB in float32
CPU_BLOCK = 1 << 18  # on a CPU: what stays in its cache
GROUPS, GRADIENT_GROUPS = 16, 4  # of images of like region counts, compared group by group, so that little is padded


@dataclass
class Encoded:
    """One side in the joint space.

    vectors   float [N, F, E]: l2-normalised fragments, zero behind each row's length; F = 1 where one vector stands for all
    lengths   int64 [N]
    states    Ragged [*, E] or None: VSRN's region states, which its captioning loss reads
    """

    vectors: Tensor
    lengths: Tensor
    states: Ragged | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def select(self, rows: Tensor) -> Encoded:
        """The given rows (int64 [M], repeats allowed), without `states`."""
        return Encoded(self.vectors[rows], self.lengths[rows])

    @staticmethod
    def cat(parts: list[Encoded]) -> Encoded:
        """All rows of all parts, with the `states` of none."""
        widest = max(part.vectors.shape[1] for part in parts)
        vectors = [F.pad(part.vectors, (0, 0, 0, widest - part.vectors.shape[1])) for part in parts]
        return Encoded(torch.cat(vectors), torch.cat([part.lengths for part in parts]))


class Matcher(PreTrainedModel, ABC):
    """`similarity(images, captions)` is what everything else calls; a matcher defines the four functions behind it."""

    config_class: type[MatcherConfig] = MatcherConfig
    base_model_prefix = "matcher"
    # what it is, for who scores with it: tagsds.scoring.protocol.RetrievalModel
    kind: ClassVar[str] = "a matcher"
    scored_by: ClassVar[str] = "sides"
    score_unit: ClassVar[str] = "similarity"
    averages_sigmoids: ClassVar[bool] = False

    @property
    def vectors(self) -> Callable[..., Tensor] | None:
        """`embed` of a matcher whose items are one vector each (VSRN), or None."""
        return getattr(self, "embed", None)

    def _init_weights(self, module: nn.Module) -> None:
        """Each module's own initialisation; torch's where a class here does not say otherwise."""
        begin = getattr(module, "reset_parameters", None)
        if callable(begin):
            begin()

    @property
    def has_batch_norm(self) -> bool:
        """Whether the encoding of an image depends, in training, on the images encoded with it."""
        return any(isinstance(module, nn.BatchNorm1d) for module in self.modules())

    def take_training_settings(self, settings: MatcherSettings, seed: int) -> None:
        """Take over what of a recipe belongs to the training and not to the weights, for a matcher that was loaded from `init`.
        `seed`: of the run, for weights that are added."""

    def extra_losses(self, images: Encoded, captions: Ragged) -> dict[str, Tensor]:
        """Losses of the matcher's own beside the matching loss, by name: {name: float32 []}. Called where
        `MatcherSettings.extra_weights` names one. Row p of `images` (with `states`) belongs to caption p."""
        return {}

    @abstractmethod
    def encode_images(self, images: Images) -> Encoded:
        ...

    @abstractmethod
    def encode_captions(self, captions: Ragged) -> Encoded:
        """`captions`: Ragged int64 word pieces with [CLS] and [SEP], which stand for SCAN's start and end words."""
        ...

    @abstractmethod
    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        """Every image with every caption: float32 [I, C]."""
        ...

    @abstractmethod
    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """Row p of the images with row p of the captions: float32 [P]."""
        ...

    def similarity(self, images: Images, captions: Ragged) -> Tensor:
        """float32 [I, C]."""
        return self.compare(self.encode_images(images), self.encode_captions(captions))

    def forward(self, images: Images, captions: Ragged) -> Tensor:
        return self.similarity(images, captions)


def trimmed(side: Encoded) -> Encoded:
    """Without the padding that no row of it needs."""
    return Encoded(side.vectors[:, : int(side.lengths.max()) if len(side) else 0], side.lengths)


@dataclass
class Side:
    """What the attention needs of one side: `real` bool [..., F], true where a fragment exists (false in padding); `gram` float
    [..., F, F], the products of its fragments with one another."""

    real: Tensor
    gram: Tensor

    @staticmethod
    def of(encoded: Encoded) -> Side:
        vectors = at_least_float32(encoded.vectors)
        real = torch.arange(vectors.shape[1], device=vectors.device) < encoded.lengths[:, None]
        return Side(real, vectors @ vectors.mT)

    def unsqueeze(self, dim: int) -> Side:
        """A dimension of size 1 among the leading ones."""
        return Side(self.real.unsqueeze(dim), self.gram.unsqueeze(dim))


class FragmentMatcher(Matcher):
    """Regions are projected, words are the mean of a GRU's two directions, and `relate` compares the two sets of fragments."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__(config)
        self.project = RegionProjection(config)
        self.text = CaptionEncoder(config, bidirectional=True)
        self.post_init()

    def encode_images(self, images: Images) -> Encoded:
        regions = self.project(images)
        return Encoded(Ragged(unit(regions.values), regions.lengths).pad(0), regions.lengths)

    def encode_captions(self, captions: Ragged) -> Encoded:
        return Encoded(unit(self.text(captions)[0]), captions.lengths)

    @abstractmethod
    def relate(self, dots: Tensor, regions: Side, words: Side) -> Tensor:
        """Similarity [...] from the products of words and regions, dots [..., L, R]."""
        ...

    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        gradient = torch.is_grad_enabled() and (images.vectors.requires_grad or captions.vectors.requires_grad)
        compare = self.compare_block if gradient else self.compare_in_blocks
        order = images.lengths.argsort(stable=True)
        with full_precision(images.vectors):
            groups = order.chunk(GRADIENT_GROUPS if gradient else GROUPS)
            return torch.cat([compare(trimmed(images.select(rows)), captions) for rows in groups])[order.argsort()]

    def compare_in_blocks(self, images: Encoded, captions: Encoded) -> Tensor:
        """`compare`, some captions of like length at a time, so that a block is small and as narrow as its longest."""
        most = BLOCK if images.vectors.is_cuda else CPU_BLOCK
        lengths, order = captions.lengths.cpu().sort(stable=True)
        out = images.vectors.new_empty(len(images), len(captions), dtype=at_least_float32(images.vectors[:0]).dtype)
        stop = len(captions)
        while stop > 0:
            width = int(lengths[stop - 1])
            start = max(stop - max(most // max(images.vectors.shape[:2].numel() * width, 1), 1), 0)
            rows = order[start:stop].to(out.device)
            out[:, rows] = self.compare_block(images, Encoded(captions.vectors[rows, :width], captions.lengths[rows]))
            stop = start
        return out

    def compare_block(self, images: Encoded, captions: Encoded) -> Tensor:
        """`compare` at once, all pairs in memory."""
        dots = torch.einsum("ire,cle->iclr", at_least_float32(images.vectors), at_least_float32(captions.vectors))
        return self.relate(dots, Side.of(images).unsqueeze(1), Side.of(captions).unsqueeze(0))

    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        with full_precision(images.vectors):
            dots = at_least_float32(captions.vectors) @ at_least_float32(images.vectors).mT
            return self.relate(dots, Side.of(images), Side.of(captions))


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast off: similarities are float32 (float64 in a float64 model), since rounded ones tie."""
    return torch.autocast(like.device.type, enabled=False)


def known_option(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise UserError(f"{name} of the matcher is '{value}': {nearest(value, known)}")
