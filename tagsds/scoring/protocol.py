"""What scoring asks of a model, and what everything above asks of a scorer.

A model class states what it is (`RetrievalModel`); whoever scores, averages or reranks reads that and never asks for the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import Tensor
from transformers import AutoModel

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs


class RetrievalModel(Protocol):
    """A model that scores images with captions. All but `config` and `vectors` are attributes of the class.

    config              its Hugging Face config
    kind                the kind in words, for messages: "the pair encoder", "a matcher"
    scored_by           its scorer: a key of `tagsds.scoring.registry.SCORERS`
    score_unit          what its scores are: "ranking logit", "similarity"
    averages_sigmoids   an ensemble averages sigmoids of its scores (logits have no common scale), else the scores themselves
    vectors             vectors(images=..., captions=...) -> [N, E] where one vector stands for an item and a dot product is the
                        similarity (VSRN), else None
    """

    config: Any
    kind: ClassVar[str]
    scored_by: ClassVar[str]
    score_unit: ClassVar[str]
    averages_sigmoids: ClassVar[bool]

    @property
    def vectors(self) -> Callable[..., Tensor] | None: ...


class PairScorer(Protocol):
    """Scores of a model without dropout or gradient.

    encodes_apart   images and captions are encoded apart from each other, so that a further pair costs a comparison and no
                    forward of the model
    """

    model: Any
    encodes_apart: ClassVar[bool]

    def __call__(self, pairs: Pairs, progress: bool = False) -> Tensor:
        """float32 [P]."""

    def matrix(
        self, bank: Bank, images: Tensor, captions: Tensor, progress: bool = True, block_images: int | None = None
    ) -> Tensor:
        """Every image (int64 [I]) with every caption (int64 [C]): float32 [I, C]."""

    def ready(self) -> str:
        """Make a loaded checkpoint ready to score; the name of what it scores with: 'rank', 'itm', 'similarity'. UserError where
        nothing in it can."""


def model_class(config: Any) -> type[RetrievalModel]:
    """The class that AutoModel makes from a config, so that its statements can be read before any weight is."""
    found: Any = AutoModel._model_mapping[type(config)]
    return found
