"""What teaches the probe of cascade mining: pairwise logistic ranking (RankNet's form) of the truly hardest above the others.

Shapes: B = rows, each a caption with images or an image with captions; K = hardest of a row; N = others of it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def probe_ranking(hard: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """mean over the rows' (hard, other) of log(1 + exp(p(other) - p(hard))), weighted by the other: float32 [].

    hard     float [B, K], the probe's scores p of the candidates that the whole encoder scores highest
    others   float [B, N], those of other candidates
    weight   float [B, N], how many candidates of the row each of them stands for; 0 leaves it out

    No other at all gives an exact 0 that hangs on the graph.
    """
    above = F.softplus(others.float()[:, None, :] - hard.float()[:, :, None]) * weight[:, None, :]  # [B, K, N]
    return above.sum() / (weight.sum() * hard.shape[1]).clamp(min=1e-6)
