"""What is read off the encoder's states (UNITER, arXiv 1909.11740; TAGS-DC, arXiv 2111.03349).

H = hidden width, M = states handed in, V = word pieces, C = region classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.models.uniter.config import UniterConfig


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
