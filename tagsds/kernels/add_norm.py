"""LayerNorm(residual + dropout(x)), the end of either half of a transformer layer, in one pass over memory.

Shapes: N rows, H = width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.kernels import choice
from tagsds.kernels.dropout import draw_seed


def add_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float) -> Tensor:
    """Plain torch. Its dropout is torch's own: another mask than the kernels', of the same odds."""
    return F.layer_norm(residual + F.dropout(x, dropout), weight.shape, weight, bias, eps)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float = 0.0) -> Tensor:
    """x, residual [N, H], weight, bias [H] -> [N, H] in x's dtype; statistics are taken in float32."""
    chosen = choice.add_norm(x.device, x.dtype)
    if chosen == "reference" or x.ndim != 2:
        return add_norm_reference(x, residual, weight, bias, eps, dropout)
    seed = draw_seed() if dropout else 0
    residual = residual.to(x.dtype)
    if chosen == "cpu":
        from tagsds.kernels.cpu.add_norm import AddNorm as Kernel

        out = Kernel.apply(x, residual, weight, bias, eps, dropout, seed)
        assert isinstance(out, Tensor)
        return out
    from tagsds.kernels.triton import add_norm as triton

    return triton.add_norm(x, residual, weight, bias, eps, dropout, seed)


class AddNorm(nn.LayerNorm):
    """`nn.LayerNorm` of residual + dropout(x) by the chosen kernel; without a residual plain LayerNorm."""

    def forward(self, x: Tensor, residual: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        if residual is None:
            return super().forward(x)
        return add_norm(x, residual, self.weight, self.bias, self.eps, dropout)
