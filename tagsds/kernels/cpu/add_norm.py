"""LayerNorm(residual + dropout(x)) on a CPU (add_norm.cpp): the autograd function around its forward and backward."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tagsds.kernels.cpu.build import at, library
from tagsds.kernels.dropout import threshold
from tagsds.kernels.rows import new_rows

BLOCK = 128  # kBlock of add_norm.cpp


class Rows(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "width")),
        ("residual_rows", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("eps", "p", "keep")),
        *((name, ctypes.c_uint32) for name in ("seed", "threshold")),
    )


class AddNorm(torch.autograd.Function):
    """x, residual [N, H] of one dtype, float32 or bfloat16; weight, bias [H] -> [N, H]."""

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float, seed: int) -> Tensor:
        x, residual = x.contiguous(), residual.contiguous()
        out = new_rows(x, *x.shape)
        wants = any(ctx.needs_input_grad)
        statistics = torch.empty(2, len(x) if wants else 0)
        scale, shift = weight.float().contiguous(), bias.float().contiguous()
        rows = _rows(x, eps, p, seed)
        mean, inverse = (at(statistics[0]), at(statistics[1])) if wants else (None, None)
        library().add_norm_forward(
            ctypes.byref(rows), int(x.dtype == torch.bfloat16), at(x), at(residual), at(scale), at(shift), at(out), mean,
            inverse,
        )  # fmt: skip
        if wants:
            ctx.save_for_backward(x, residual, weight, statistics)
            ctx.given, ctx.dtypes = (eps, p, seed), (weight.dtype, bias.dtype)
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):  # type: ignore[override]
        x, residual, weight, statistics = ctx.saved_tensors
        eps, p, seed = ctx.given
        rows, width = _rows(x, eps, p, seed), x.shape[1]
        d_out = d_out.to(x.dtype).contiguous()
        d_residual = new_rows(x, *x.shape)
        d_x = new_rows(x, *x.shape) if p else d_residual
        sums = torch.empty((len(x) + BLOCK - 1) // BLOCK, 2, width)
        d_weight, d_bias = torch.empty(2, width)
        scale = weight.float().contiguous()
        library().add_norm_backward(
            ctypes.byref(rows), int(x.dtype == torch.bfloat16), at(x), at(residual), at(scale), at(statistics[0]),
            at(statistics[1]), at(d_out), at(d_x) if p else None, at(d_residual), at(sums), at(d_weight), at(d_bias),
        )  # fmt: skip
        return d_x, d_residual, d_weight.to(ctx.dtypes[0]), d_bias.to(ctx.dtypes[1]), None, None, None


def _rows(x: Tensor, eps: float, p: float, seed: int) -> Rows:
    return Rows(len(x), x.shape[1], None, eps, p, 1 / (1 - p), seed, threshold(p))
