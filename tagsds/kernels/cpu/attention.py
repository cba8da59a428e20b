"""Attention over packed sequences on a CPU (attention.cpp): the autograd function around its forward and backward."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tagsds.kernels.cpu.build import at, library
from tagsds.kernels.dropout import threshold
from tagsds.kernels.rows import new_rows


class Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("sequences", "heads", "width")),
        *((name, ctypes.c_void_p) for name in ("q_starts", "k_starts")),
        *((name, ctypes.c_long) for name in ("q_stride", "k_stride", "v_stride")),
        *((name, ctypes.c_float) for name in ("scale", "p", "keep")),
        *((name, ctypes.c_uint32) for name in ("seed", "threshold")),
    )


def takes(dtype: torch.dtype, width: int) -> bool:
    """float32 and bfloat16, heads of 1 to 256 numbers."""
    return dtype in (torch.float32, torch.bfloat16) and 1 <= width <= 256


class SelfAttention(torch.autograd.Function):
    """Queries, keys and values of one product, or queries apart -> [K, H].

    packed             [N, 3H] with queries in front, or [N, 2H], keys and values only
    query              [K, H], or None: those of `packed` (K = N)
    q_starts, k_starts int64 [P + 1], how K and N divide into sequences
    """

    @staticmethod
    def forward(
        ctx, packed: Tensor, query: Tensor | None, heads: int, q_starts: Tensor, k_starts: Tensor, p: float, seed: int
    ) -> Tensor:
        packed = packed.contiguous()
        query = packed if query is None else query.contiguous()
        width = packed.shape[1] // (3 if query is packed else 2)
        shape = _shape(query, packed, width, heads, q_starts, k_starts, p, seed)
        out = new_rows(packed, len(query), width)
        wants = any(ctx.needs_input_grad[:2])
        log_sums = torch.empty(len(query) * heads if wants else 0)
        library().attention_forward(
            ctypes.byref(shape), int(packed.dtype == torch.bfloat16), *_parts(query, packed, width), at(out),
            at(log_sums) if wants else None,
        )  # fmt: skip
        if wants:
            ctx.save_for_backward(query, packed, out, log_sums, q_starts, k_starts)
            ctx.given, ctx.together = (heads, p, seed), query is packed
        return out

    @staticmethod
    def backward(ctx, d_out: Tensor):  # type: ignore[override]
        query, packed, out, log_sums, q_starts, k_starts = ctx.saved_tensors
        width = out.shape[1]
        heads, p, seed = ctx.given
        shape = _shape(query, packed, width, heads, q_starts, k_starts, p, seed)
        d_out = d_out.to(packed.dtype).contiguous()
        d_packed = new_rows(packed, *packed.shape)
        d_query = d_packed if ctx.together else new_rows(query, *query.shape)
        library().attention_backward(
            ctypes.byref(shape), int(packed.dtype == torch.bfloat16), *_parts(query, packed, width), at(out), at(log_sums),
            at(d_out), *_parts(d_query, d_packed, width),
        )  # fmt: skip
        return d_packed, None if ctx.together else d_query, None, None, None, None, None


def _shape(
    query: Tensor, packed: Tensor, width: int, heads: int, q_starts: Tensor, k_starts: Tensor, p: float, seed: int
) -> Shape:
    of_head = width // heads
    return Shape(
        len(k_starts) - 1, heads, of_head, q_starts.data_ptr(), k_starts.data_ptr(), query.stride(0), packed.stride(0),
        packed.stride(0), of_head**-0.5, p, 1 / (1 - p), seed, threshold(p),
    )  # fmt: skip


def _parts(query: Tensor, packed: Tensor, width: int) -> list[ctypes.c_void_p]:
    """Where queries, keys and values of row 0 begin."""
    step, behind = width * packed.element_size(), int(packed.shape[1] == 3 * width)
    begin = packed.data_ptr()
    return [ctypes.c_void_p(at) for at in (query.data_ptr(), begin + behind * step, begin + (behind + 1) * step)]
