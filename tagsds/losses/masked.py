"""Losses at masked positions: words (MLM), regions (MRFR, MRC-KL, MRC); UNITER, arXiv 1909.11740, 3.2.

Shapes: M = masked positions of the micro-batch, V = word pieces, D = width of a region feature, C = region classes.

Logits and states are handed in at the masked positions only. Everything is computed in float32 from log_softmax: taking
softmax, clamping and then the log underflows in half precision. M = 0 gives a 0 on the graph.
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


def region_kl(logits: Tensor, soft: Tensor, reduction: str = "mean") -> Tensor:
    """MRC-KL: KL(soft || softmax(logits)), mean over positions: logits, soft [M, C] -> float32 [].

    soft        float, the detector's distribution; 0 log 0 = 0
    reduction   over the classes: "mean" (the released code, whose schedule and task weights are the published ones: 1 / C of the
                sum) or "sum" (the paper's text)
    """
    if soft.numel() == 0:
        return _nothing(logits)
    soft = soft.float()
    log_p = F.log_softmax(logits.float(), dim=-1)
    divergence = torch.xlogy(soft, soft) - soft * log_p
    return divergence.mean() if reduction == "mean" else divergence.sum(dim=-1).mean()


def likeliest_class(soft: Tensor, background: bool) -> Tensor:
    """Target of MRC: the class of highest probability, int64 [M]; column 0 is never it where it stands for `background`."""
    return soft[:, 1:].argmax(dim=-1) + 1 if background else soft.argmax(dim=-1)


def region_cross_entropy(logits: Tensor, soft: Tensor, background: bool) -> Tensor:
    """MRC: cross entropy to the detector's likeliest class: logits, soft float [M, C] -> float32 [].

    background   column 0 stands for background, which is no target (UNITER's 1,601 columns)
    """
    if soft.numel() == 0:
        return _nothing(logits)
    return F.cross_entropy(logits.float(), likeliest_class(soft, background))
