"""Losses at masked positions: words (MLM), regions (MRFR, MRC-KL, MRC); UNITER, arXiv 1909.11740, 3.2; method 2.

Shapes: M = masked positions of the micro-batch, V = word pieces, D = width of a region feature, C = region classes.

Logits and states are handed in at the masked positions only. Everything is computed in float32 from log_softmax: taking
softmax, clamping and then the log underflows in half precision (method 7.6). M = 0 gives a 0 on the graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _nothing(x: Tensor) -> Tensor:
    """A float32 zero that depends on `x`, which is empty: the backward still visits every parameter."""
    return x.float().sum() * 0


def word_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), mean over the positions: logits float [M, V], targets int64 [M] -> float32 [].

    Serves MLM and the correction of TAGS-DC. Peak: two float32 [M, V] (the cast and its log_softmax).
    """
    if targets.numel() == 0:
        return _nothing(logits)
    return F.cross_entropy(logits.float(), targets)


def region_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """MRFR: mean squared error over positions and components: predicted, target float [M, D] -> float32 []."""
    if target.numel() == 0:
        return _nothing(predicted)
    return F.mse_loss(predicted.float(), target.float())


def region_kl(logits: Tensor, soft: Tensor) -> Tensor:
    """MRC-KL: KL(soft || softmax(logits)), sum over classes, mean over positions: logits, soft [M, C] -> float32 [].

    `soft` float is the detector's distribution; 0 log 0 = 0.
    """
    if soft.numel() == 0:
        return _nothing(logits)
    soft = soft.float()
    log_p = F.log_softmax(logits.float(), dim=-1)
    return (torch.xlogy(soft, soft) - soft * log_p).sum(dim=-1).mean()


def region_cross_entropy(logits: Tensor, soft: Tensor) -> Tensor:
    """MRC: cross entropy to the detector's likeliest class: logits, soft float [M, C] -> float32 []."""
    if soft.numel() == 0:
        return _nothing(logits)
    return F.cross_entropy(logits.float(), soft.argmax(dim=-1))
