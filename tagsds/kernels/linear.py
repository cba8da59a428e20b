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
from tagsds.kernels.rows import new_rows, with_spare

SMALL = 1 << 27  # multiplications, about a millisecond: below it, making oneDNN's product ready takes what it saves
MANY = 8192  # rows from which packing a weight for one product pays: 0.1 to 0.4 ms
BLOCK = 2048  # rows of features that are converted at a time

_ready: dict[tuple[int, torch.Size, int, torch.dtype], tuple[Tensor, ...]] | None = None


@contextmanager
def weights_ready_once(model: nn.Module) -> Iterator[None]:
    """Inside, a weight of `model` is cast to the precision of autocast and packed for oneDNN once, not at each product: for code
    without gradient. Not where ZeRO-3 gathers weights for each product anew: their addresses, by which they are known, come and
    go."""
    global _ready
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        yield
        return
    before, _ready = _ready, {}
    try:
        yield
    finally:
        _ready = before


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """x [N, I], weight [O, I], bias [O] -> x W^T + b, [N, O], with exact GELU of it where asked. Obeys autocast."""
    dtype = _precision(x)
    small = x.numel() * weight.shape[0] < SMALL
    if x.ndim != 2 or small or choice.linear(x.device, dtype) == "reference":
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out
    if not torch.is_grad_enabled():
        weight, bias, packed = _of_call(weight, bias, dtype, len(x))
        out = product(x.to(dtype), weight, bias, packed)
        return torch.ops.aten.gelu.out(out, out=out) if gelu else out  # in place: faster than oneDNN's epilogue
    out = _Linear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
    assert isinstance(out, Tensor)
    return F.gelu(out) if gelu else out


def linear_of_stored(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `linear`, of x [N, I] in the precision in which it is stored: converted in blocks where there is no gradient, so that the
    whole table never stands in memory a second time."""
    wanted = _precision(weight)
    if torch.is_grad_enabled() or len(x) <= BLOCK or choice.linear(x.device, wanted) == "reference" or x.dtype == wanted:
        return linear(x.to(weight.dtype), weight, bias)
    out = new_rows(x.new_empty(0, dtype=wanted), len(x), weight.shape[0])
    exact = x.new_empty(min(BLOCK, len(x)), x.shape[1], dtype=torch.float32)
    for rows, to in zip(x.split(BLOCK), out.split(BLOCK), strict=True):
        to.copy_(linear(exact[: len(rows)].copy_(rows).to(wanted), weight, bias))  # float32 holds either half exactly
    return out


def _precision(x: Tensor) -> torch.dtype:
    """That of autocast where it is on, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _of_call(weight: Tensor, bias: Tensor, dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight and bias of that precision, and the weight packed for oneDNN where that pays."""
    if _ready is None:
        weight = weight.to(dtype)
        return weight, bias.to(dtype), pack(weight) if rows >= MANY else None
    key = weight.data_ptr(), weight.shape, bias.data_ptr(), dtype
    if key not in _ready:
        cast = weight.to(dtype)
        _ready[key] = cast, bias.to(dtype), pack(cast), weight, bias  # the last two are held, so that addresses stay their own
    cast, cast_bias, packed, *_ = _ready[key]
    return cast, cast_bias, packed


def pack(weight: Tensor) -> Tensor:
    """A copy of `weight` [O, I] in the blocks that oneDNN's product reads; the number of rows is a hint that changes nothing above
    some dozens."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, MANY)
    assert isinstance(packed, Tensor)
    return packed


def product(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None = None) -> Tensor:
    """x W^T + b of one dtype by oneDNN, [N, O] with rows to spare behind it. `packed`: `pack(weight)`, 5 to 15 % faster."""
    rows = x.shape[0]
    if rows == 0:
        return x.new_zeros(0, weight.shape[0])
    given = weight if packed is None else packed
    out = torch.ops.mkldnn._linear_pointwise(with_spare(x), given, bias, "none", [], "")
    assert isinstance(out, Tensor)
    return out[:rows]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias, pack(weight) if len(x) >= MANY else None)

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


class FeatureLinear(Linear):
    """Of a table of stored features, whatever their precision."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return linear_of_stored(x, self.weight, self.bias)


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
