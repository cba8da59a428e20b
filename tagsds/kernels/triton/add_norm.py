"""LayerNorm(residual + dropout(x)) in one kernel, and its backward in one kernel and one sum.

Shapes: N rows of H numbers, G = programs of backward. With z = residual + dropout(x) and n = (z - mean) * rstd:

    y = w n + b        a = w dy        dz = rstd (a - mean(a) - n mean(a n))        dx = dropout(dz)        dw = sum_N dy n

Forward keeps mean and rstd; backward reads x and residual again and draws the same mask (tagsds.kernels.dropout), so that neither z
nor a mask is stored. dw and db: each of the G programs sums its rows in registers, then the G partial sums are added up. Without
atomics gradients repeat to the bit on the same GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tagsds.kernels.triton.bits import bits_of, row_bits
from tagsds.kernels.triton.device import drop_settings, on, processors
from tagsds.kernels.triton.interpreter import cast

WIDEST = 4096
ROWS_PER_PROGRAM = 16  # of backward, at least: fewer would write more partial sums than they read rows


@triton.jit
def _sum_of(x, residual, row, source, column, inside, drawn, stride, threshold: tl.constexpr, keep_scale: tl.constexpr):
    """z of one row in float32; `stride` = H."""
    value = tl.load(x + row.to(tl.int64) * stride + column, mask=inside, other=0.0).to(tl.float32)
    if threshold > 0:
        value = tl.where(bits_of(drawn, column) >= threshold, value * keep_scale, 0.0)
    return value + tl.load(residual + source * stride + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["seed"])
def add_norm_forward(
    x, residual, rows, weight, bias, out, mean, rstd, seed,
    width: tl.constexpr, block: tl.constexpr, eps: tl.constexpr, gathers: tl.constexpr, keeps: tl.constexpr,
    threshold: tl.constexpr, keep_scale: tl.constexpr,
):  # fmt: skip
    """One row. `gathers`: the residual's row is rows[row]; `keeps`: mean and rstd are written for backward."""
    row = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < width
    source = row.to(tl.int64)
    if gathers:
        source = tl.load(rows + row)
    z = _sum_of(x, residual, row, source, column, inside, row_bits(seed, row), width, threshold, keep_scale)
    centre = tl.sum(z, 0) / width
    z = tl.where(inside, z - centre, 0.0)
    scale = 1 / tl.sqrt(tl.sum(z * z, 0) / width + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    y = z * scale * w + b
    tl.store(out + row.to(tl.int64) * width + column, cast(y, out.dtype.element_ty), mask=inside)
    if keeps:
        tl.store(mean + row, centre)
        tl.store(rstd + row, scale)


@triton.jit(do_not_specialize=["seed", "count", "share"])
def add_norm_backward(
    grad, x, residual, weight, mean, rstd, dx, dresidual, partial, seed, count, share,
    width: tl.constexpr, block: tl.constexpr, threshold: tl.constexpr, keep_scale: tl.constexpr, apart: tl.constexpr,
):  # fmt: skip
    """`share` rows of `count`. partial float32 [G, 2, H]: the program's dw and db. `apart`: dresidual is not dx."""
    program = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < width
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros([block], tl.float32)
    db = tl.zeros([block], tl.float32)
    for index in range(0, tl.minimum(share, count - program * share)):
        row = program * share + index
        first = row.to(tl.int64)
        drawn = row_bits(seed, row)
        z = _sum_of(x, residual, row, first, column, inside, drawn, width, threshold, keep_scale)
        dy = tl.load(grad + first * width + column, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row)
        n = tl.where(inside, (z - tl.load(mean + row)) * scale, 0.0)
        dw += dy * n
        db += dy
        a = dy * w
        dz = (a - tl.sum(a, 0) / width - n * (tl.sum(a * n, 0) / width)) * scale
        if apart:
            tl.store(dresidual + first * width + column, cast(dz, dresidual.dtype.element_ty), mask=inside)
        if threshold > 0:
            dz = tl.where(bits_of(drawn, column) >= threshold, dz * keep_scale, 0.0)
        tl.store(dx + first * width + column, cast(dz, dx.dtype.element_ty), mask=inside)
    tl.store(partial + program * 2 * width + column, dw, mask=inside)
    tl.store(partial + program * 2 * width + width + column, db, mask=inside)


def settings(width: int, dropout: float) -> dict[str, Any]:
    """Compile-time constants of both kernels, but for `eps`, `gathers`, `keeps` of forward and `apart` of backward."""
    if width > WIDEST:
        raise ValueError(f"the LayerNorm kernel takes rows of at most {WIDEST} numbers, not {width}")
    block = triton.next_power_of_2(width)
    return {"width": width, "block": block, **drop_settings(dropout), "num_warps": min(16, max(1, block // 256))}


def _forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, seed: int, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """out, mean, rstd; the last two are empty where no gradient is wanted (`rows` given)."""
    count, width = x.shape
    out = torch.empty_like(x)
    mean, rstd = (torch.empty(0 if rows is not None else count, dtype=torch.float32, device=x.device) for _ in range(2))
    chosen = settings(width, dropout)
    if count:
        with on(x):
            add_norm_forward[(count,)](
                x, residual, x if rows is None else rows, weight, bias, out, mean, rstd, seed,
                eps=eps, gathers=rows is not None, keeps=rows is None, **chosen,
            )  # fmt: skip
    return out, mean, rstd


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, seed: int) -> Tensor:
        out, mean, rstd = _forward(x, residual, weight, bias, eps, dropout, seed, None)
        ctx.save_for_backward(x, residual, weight, mean, rstd)
        ctx.dropout, ctx.seed, ctx.bias_dtype = dropout, seed, bias.dtype
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, residual, weight, mean, rstd = ctx.saved_tensors
        count, width = x.shape
        apart = ctx.dropout > 0 or x.dtype != residual.dtype
        dx = torch.empty_like(x)
        dresidual = torch.empty_like(residual) if apart else dx
        programs = max(1, min(triton.cdiv(count, ROWS_PER_PROGRAM), 4 * processors(x)))
        share = triton.cdiv(count, programs)
        partial = torch.empty(programs, 2, width, dtype=torch.float32, device=x.device)
        with on(x):
            add_norm_backward[(programs,)](
                grad.contiguous(), x, residual, weight, mean, rstd, dx, dresidual, partial, ctx.seed, count, share,
                apart=apart, **settings(width, ctx.dropout),
            )  # fmt: skip
        dw, db = partial.sum(dim=0)
        return dx, dresidual, dw.to(weight.dtype), db.to(ctx.bias_dtype), None, None, None


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, seed: int, rows: Tensor | None = None
) -> Tensor:
    """LayerNorm(residual + dropout(x)): x, residual [N, H], H <= 4096; weight, bias [H] -> [N, H] in x's dtype.

    Statistics in float32; each of the four may have a floating dtype of its own.

    rows   int64 [N]: the residual of row i is residual[rows[i]], of a table [R, H]; without gradient
    """
    x, residual = x.contiguous(), residual.contiguous()
    if rows is None:
        return _AddNorm.apply(x, residual, weight, bias, eps, dropout, seed)
    if torch.is_grad_enabled() and any(given.requires_grad for given in (x, residual, weight, bias)):
        raise ValueError("add_norm with `rows` has no gradient: gather the residual's rows first")
    return _forward(x, residual, weight, bias, eps, dropout, seed, rows)[0]
