"""The hinge of the ranking losses, and the choice of the hardest negatives (TAGS-DC, arXiv 2111.03349).

Shapes: B = true pairs, K = hard negatives of a pair, C = candidates to choose from.

`triplet` serves all three ranking terms of the paper: t2i (hard = other images), i2t (other captions) and syn (written sentences).
`contrast` is a further one over the same negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def triplet(true: Tensor, hard: Tensor, valid: Tensor | None, margin: float) -> Tensor:
    """mean over the pairs of [ mean over their hard negatives of [margin + s(hard) - s(true)]+ ]: float32 [].

    true    float [B], s = sigmoid(rank logit) of the true pairs
    hard    float [B, K], s of their hard negatives
    valid   bool [B, K] or None (all): slots that hold a negative; the others add nothing, whatever they hold, even nan

    The inner mean is over the valid slots, the outer over the pairs that have one. No valid slot at all gives an exact
    0 that still hangs on the graph, so that every rank runs the same backward.
    """
    true, hard = true.float(), hard.float()
    if valid is None:
        valid = torch.ones_like(hard, dtype=torch.bool)
    hard = torch.where(valid, hard, 0.0)  # before the arithmetic, so that no gradient can be nan
    hinge = torch.where(valid, F.relu(margin + hard - true[:, None]), 0.0)
    count = valid.sum(dim=1)
    per_pair = hinge.sum(dim=1) / count.clamp(min=1)
    return per_pair.sum() / (count > 0).sum().clamp(min=1)


def contrast(true: Tensor, hard: Tensor, valid: Tensor | None) -> Tensor:
    """mean over the pairs of -log [ e^z(true) / (e^z(true) + sum over their hard negatives of e^z(hard)) ]: float32 [].

    InfoNCE (van den Oord et al., arXiv 1807.03748) over the negatives that were kept, on ranking logits z. Where the triplet leaves
    a pair alone once it is a margin ahead, this goes on, and weighs a pair's negatives by how near they come.

    true    float [B], ranking logits of the true pairs
    hard    float [B, K], of their hard negatives
    valid   bool [B, K] or None (all); the mean is over the pairs that have a valid slot, as in `triplet`
    """
    true, hard = true.float(), hard.float()
    if valid is None:
        valid = torch.ones_like(hard, dtype=torch.bool)
    margins = torch.where(valid, torch.where(valid, hard, 0.0) - true[:, None], -torch.inf)
    per_pair = torch.cat([torch.zeros_like(true[:, None]), margins], dim=1).logsumexp(dim=1)  # 0 where no slot is valid
    return per_pair.sum() / valid.any(dim=1).sum().clamp(min=1)


def hardest(scores: Tensor, k: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k valid candidates of highest score, hardest first: index int64 [B, k'], valid bool [B, k'], k' = min(k, C).

    scores   float [B, C]; any monotone form of s will do (logits keep apart what the sigmoid rounds to 1)
    valid    bool [B, C] or None (all). A row with fewer than k' valid candidates ends in slots marked False.
    """
    if valid is None:
        valid = torch.ones_like(scores, dtype=torch.bool)
    masked = scores.detach().masked_fill(~valid, -torch.inf)
    index = masked.topk(min(k, scores.shape[1]), dim=1).indices
    return index, valid.gather(1, index)
