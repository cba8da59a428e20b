"""The probe of cascade mining: a cheap score of a pair, by which negatives are dropped before the encoder sees them.

It never sees a pair's tokens together. Each text and each image becomes one vector by attention pooling over its embeddings, once a
table row, and a pair's score is a dot product of two vectors. (What the first layers know of a pair at [CLS] is too little: the
query of [CLS] is the same for all pairs in the first layer, so that its state there is a sum of a text half and an image half.)

Shapes: N = word pieces or regions of a table, R = its rows, H = hidden width, Q = queries, W = width of a query's value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagsds.models.uniter.config import UniterConfig

QUERIES = 8
SCALE = 10.0


class ProbeLinear(nn.Linear):
    """y = SCALE (W x + b), beginning with a SCALE W of deviation 1 / sqrt(inputs).

    Adam moves a weight by about the learning rate, whatever its gradient: the factor makes that SCALE times as far. The probe
    begins fresh where the encoder is pre-trained, and has to follow it while it moves. (With BERT's deviation of 0.02 both vectors
    would be near zero, where a dot product has next to no gradient.)
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5 / SCALE)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return SCALE * super().forward(x)


class Side(nn.Module):
    """Embeddings [N, H], lengths int64 [R] -> one vector a row, [R, Q * W]: Q learnt queries attend to the row's embeddings."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.queries = config.probe_queries
        width = self.queries * max(1, config.hidden_size // self.queries)
        self.attend = ProbeLinear(config.hidden_size, self.queries)
        self.value = ProbeLinear(config.hidden_size, width)
        self.out = ProbeLinear(width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        logits = self.attend(x).float()
        longest = torch.segment_reduce(logits.detach(), "max", lengths=lengths, axis=0, unsafe=True)
        weights = (logits - longest.repeat_interleave(lengths, dim=0, output_size=len(x))).exp()
        value = self.value(x).float().unflatten(-1, (self.queries, -1))
        # one reduction for numerators and denominators; rows are never padded
        summed = torch.cat([(weights[..., None] * value).flatten(1), weights], dim=1)
        sums = torch.segment_reduce(summed, "sum", lengths=lengths, axis=0, unsafe=True)
        pooled, total = sums.split([summed.shape[1] - self.queries, self.queries], dim=1)
        pooled = pooled.unflatten(-1, (self.queries, -1)) / total.clamp(min=1e-30)[..., None]  # an image may have no region
        return self.out(pooled.flatten(1).to(x.dtype))


class Probe(nn.Module):
    """Both sides' vectors; `forward` takes both tables at once, so that it is one call of a module for ZeRO-3."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.text = Side(config)
        self.image = Side(config)

    def forward(self, text: Tensor, text_lengths: Tensor, image: Tensor, image_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 vectors of all texts and all images, the images' divided by the root of the width."""
        texts, images = self.text(text, text_lengths).float(), self.image(image, image_lengths).float()
        return texts, images * images.shape[-1] ** -0.5
