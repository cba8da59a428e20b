"""Word discrimination of TAGS-DC: which words of a synthetic sentence were replaced (arXiv 2111.03349).

The other half of stage 2, word correction (predict the original piece at the masked positions from the synthetic
sentence), is plain cross entropy over the vocabulary: `tagsds.losses.masked.word_cross_entropy`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discrimination(logits: Tensor, replaced: Tensor, weight_replaced: float = 1.0, weight_kept: float = 0.11) -> Tensor:
    """Weighted cross entropy, sum(w * ce) / M: float32 [].

    logits     float [M, 2] of all tokens of the synthetic sentences, [CLS] and [SEP] among them; column 1 = the token is the
               original, column 0 = it was replaced (the order of the published `disc_output`)
    replaced   bool [M]: the token differs from the original (a masked position refilled with its own piece does not)

    The sum is divided by the number of tokens M, not by the sum of the weights: the published lambda_disc is meant for that.
    Few tokens are replaced, hence the small weight of the others. M = 0 gives a 0 on the graph.
    """
    cross_entropy = F.cross_entropy(logits.float(), (~replaced).long(), reduction="none")
    weight = torch.where(replaced, weight_replaced, weight_kept)
    return (weight * cross_entropy).sum() / max(replaced.numel(), 1)
