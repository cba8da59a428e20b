"""Image-text matching and the word-region alignment beside it (UNITER, arXiv 1909.11740, 3.2).

Shapes: P = pairs, W = words of the longest text, R = regions of the largest image, H = hidden width.

Word-region alignment is optimal transport between the words and the regions of a pair, solved by the proximal point
method IPOT (Xie et al., UAI 2019, arXiv 1802.04307, algorithm 1 with one inner step).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def itm(logits: Tensor, is_true: Tensor) -> Tensor:
    """Cross entropy, mean over the pairs: logits float [P, 2], column 1 = true; is_true bool [P] -> float32 []."""
    if is_true.numel() == 0:
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float(), is_true.long())


@torch.no_grad()
def transport_plan(
    cost: Tensor, word_mask: Tensor, region_mask: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """The plan that carries the words' mass to the regions at least cost: float32 [P, W, R], without gradient.

    cost                     float [P, W, R]; padded cells may hold anything
    word_mask, region_mask   bool [P, W], [P, R]: what is present; the mass 1 is spread evenly over it on either side
    beta                     step of the proximal point method: smaller is sharper, and less stable

    Each step scales the kernel Q = exp(-cost / beta) * T once by columns and then once by rows, the order of UNITER's released
    code. Rows (words) therefore hold their marginal exactly, columns (regions) as far as the iteration has converged. Padded rows
    and columns are 0.
    """
    cells = word_mask[:, :, None] & region_mask[:, None, :]
    words = word_mask.float() / word_mask.sum(dim=1, keepdim=True).clamp(min=1)
    regions = region_mask.float() / region_mask.sum(dim=1, keepdim=True).clamp(min=1)
    kernel = torch.where(cells, torch.exp(-cost.float() / beta), 0.0)
    plan, row = cells.float(), words
    for _ in range(iterations):  # sums instead of matmuls: autocast would turn those into half precision
        scaled = kernel * plan
        column = _divide(regions, (scaled * row[:, :, None]).sum(dim=1))
        row = _divide(words, (scaled * column[:, None, :]).sum(dim=2))
        plan = row[:, :, None] * scaled * column[:, None, :]
    return plan


def transport_distance(words: Tensor, word_mask: Tensor, regions: Tensor, region_mask: Tensor) -> Tensor:
    """Cost of carrying each pair's words to its regions: words [P, W, H], regions [P, R, H], masks bool -> float32 [P].

    The cost of a cell is 1 - cosine. The plan is detached: at the optimum it contributes no gradient.
    """
    with torch.autocast(words.device.type, enabled=False):
        x = F.normalize(torch.where(word_mask[..., None], words.float(), 0.0), dim=-1, eps=1e-5)
        y = F.normalize(torch.where(region_mask[..., None], regions.float(), 0.0), dim=-1, eps=1e-5)
        cost = 1.0 - x @ y.transpose(1, 2)
        plan = transport_plan(cost.detach(), word_mask, region_mask)  # 0 in padded cells
        return (plan * cost).sum(dim=(1, 2))


def _divide(marginal: Tensor, total: Tensor) -> Tensor:
    """marginal / total, where an empty row or column (padding; all of it underflowed) stays finite."""
    return marginal / torch.where(total > 0, total, 1.0)


def word_region_alignment(distance: Tensor, is_true: Tensor) -> Tensor:
    """(sum of the true pairs' distances - sum of the false) / P: distance float [P], is_true bool [P] -> float32 []."""
    distance = distance.float()
    return torch.where(is_true, distance, -distance).sum() / max(is_true.numel(), 1)
