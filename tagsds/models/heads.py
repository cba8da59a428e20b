"""What is read off the encoder's states, and how a stage's new heads begin (TAGS-DC, section 3; method 1).

H = hidden width, M = states handed in, V = word pieces, C = region classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.models.config import UniterConfig

if TYPE_CHECKING:
    from tagsds.models.uniter import UniterModel


class Pooler(nn.Module):
    """tanh(W h_CLS): [M, H] -> [M, H]."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class RankHead(nn.Linear):
    """Ranking logit [M, H] -> [M, 1], always in float32: in bf16 scores of good models tie."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__(config.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


class Transform(nn.Module):
    """Dense, exact GELU, LayerNorm: [M, H] -> [M, H]."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x)))


class WordHead(nn.Module):
    """Word-piece logits [M, H] -> [M, V]; the decoder's weight is tied to the word embeddings, its bias is its own."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class RegionFeatureHead(nn.Module):
    """The hidden feature back from its state: [M, H] -> [M, D], the last matrix tied to W_f transposed."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.region_dim))

    def forward(self, x: Tensor, projection: Tensor) -> Tensor:
        """`projection` is W_f, [H, D]."""
        return F.linear(self.transform(x), projection.t(), self.bias)


class RegionClassHead(nn.Module):
    """Detector classes of a hidden region: [M, H] -> [M, C]."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, max(config.num_region_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


HEADS = ("itm", "rank", "mlm", "discriminate", "correct", "region_feature", "region_class")
_SOURCE = {"rank": "itm", "discriminate": "itm", "correct": "mlm"}


@torch.no_grad()
def initialise_heads(model: UniterModel, needed: list[str]) -> list[str]:
    """Begin the heads a stage needs and no earlier stage has trained from the head the method names: `rank` from row 1 of
    `itm`, `discriminate` from `itm` (so that "match" starts as "original"), `correct` from `mlm`; only from a trained one. Returns
    what was done, for the log."""
    done = []
    for head in needed:
        source = _SOURCE.get(head)
        if source is None or head in model.config.trained_heads or source not in model.config.trained_heads:
            continue
        state = {k: v.clone() for k, v in getattr(model, source).state_dict().items()}
        if head == "rank":
            state = {key: value[1:2] for key, value in state.items()}
        if head == "correct":
            state.pop("decoder.weight")  # tied to the word embeddings already
        getattr(model, head).load_state_dict(state, strict=head != "correct")
        done.append(f"{head} <- {source}")
    return done
