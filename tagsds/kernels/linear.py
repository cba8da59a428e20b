"""Linear layers: on a CPU oneDNN's product, whose epilogue adds the bias without another pass over memory.

Shapes: N rows, I = width of the input, O = width of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.kernels import choice
from tagsds.kernels.rows import with_spare

SMALL = 1 << 27  # multiplications, about a millisecond: below it, making oneDNN's product ready takes what it saves

_casts: dict[tuple[int, torch.Size, torch.dtype], tuple[Tensor, Tensor]] | None = None


@contextmanager
def weights_cast_once(model: nn.Module) -> Iterator[None]:
    """Inside, a weight of `model` is cast to the precision of autocast once, not at each product: for code without gradient. Not
    where ZeRO-3 gathers weights for each product anew: their addresses, by which casts are known, come and go."""
    global _casts
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        yield
        return
    before, _casts = _casts, {}
    try:
        yield
    finally:
        _casts = before


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """x [N, I], weight [O, I], bias [O] -> x W^T + b, [N, O], with exact GELU of it where asked. Obeys autocast."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    small = x.numel() * weight.shape[0] < SMALL
    if x.ndim != 2 or small or choice.linear(x.device, dtype) == "reference":
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out
    if not torch.is_grad_enabled():
        out = product(x.to(dtype), _cast(weight, dtype), _cast(bias, dtype))
        return torch.ops.aten.gelu.out(out, out=out) if gelu else out  # in place: faster than oneDNN's epilogue
    out = _Linear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
    assert isinstance(out, Tensor)
    return F.gelu(out) if gelu else out


def _cast(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    if parameter.dtype == dtype or _casts is None:
        return parameter.to(dtype)
    key = parameter.data_ptr(), parameter.shape, dtype
    if key not in _casts:
        _casts[key] = parameter, parameter.to(dtype)  # the parameter is held, so that its address stays its own
    return _casts[key][1]


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b of one dtype by oneDNN, [N, O] with rows to spare behind it."""
    rows = x.shape[0]
    if rows == 0:
        return x.new_zeros(0, weight.shape[0])
    return torch.ops.mkldnn._linear_pointwise(with_spare(x), weight, bias, "none", [], "")[:rows]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        d_x = product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        d_weight = torch.mm(grad.t(), x) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


class Linear(nn.Linear):
    """`nn.Linear` on packed rows by the chosen kernel; the same parameters under the same names."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, gelu)


class QkvLinear(Linear):
    """The product that makes queries, keys and values, [N, H] -> [N, 3H]."""

    def forward(self, x: Tensor, asking: Tensor | None = None) -> Any:  # type: ignore[override]
        """-> [N, 3H]. Where only the positions `asking` (int64 [K]) ask: (queries [K, H], keys and values of all [N, 2H])."""
        if asking is None:
            return super().forward(x)
        width = x.shape[1]
        if choice.is_forced_to_reference("linear"):  # one product, whose bits the recorded curves have
            whole = super().forward(x)
            return whole[:, :width].index_select(0, asking), whole[:, width:]
        query = linear(x.index_select(0, asking), self.weight[:width], self.bias[:width])
        return query, linear(x, self.weight[width:], self.bias[width:])
