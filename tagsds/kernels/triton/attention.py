"""Flash attention over packed sequences with dropout, forward and backward, for sequences of 20 to 150 tokens.

Shapes: Nq queries and Nk keys of all sequences, P = sequences, A = heads, D = width of a head.
Formulas and kernels: tagsds.kernels.triton.flash.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import triton
from torch import Tensor

from tagsds.kernels.triton.device import drop_settings, on, precision
from tagsds.kernels.triton.flash import attend, attend_dkv, attend_dq

WIDEST = 256


class Sequences(Protocol):
    """What is read of tagsds.kernels.attention.Sequences, which may import this module and is not imported here."""

    lengths: Tensor
    longest: int

    @property
    def cumulative(self) -> Tensor: ...


# (float32 or not, padded width of a head at most) -> (rows that a program owns, rows that it goes through at a time, warps,
# stages). Chosen by the compiler's figures in docs/kernels.md: no spills at the usual widths. tl.dot wants 16 rows.
TILES = {
    (False, 64): (64, 32, 4, 2),
    (False, 128): (64, 32, 8, 2),
    (False, 256): (32, 32, 8, 1),
    (True, 256): (16, 16, 8, 1),
}


def settings(query: Tensor, longest: tuple[int, int], dropout: float, owns_keys: bool = False) -> dict[str, Any]:
    """Compile-time constants of a kernel, for `query` [Nq, A, D].

    longest     most queries and most keys of a sequence
    owns_keys   each program owns a block of keys (attend_dkv) instead of queries
    """
    _, heads, width = query.shape
    padded = max(16, triton.next_power_of_2(width))
    single = query.dtype == torch.float32
    own, through, warps, stages = next(TILES[key] for key in TILES if key[0] == single and padded <= key[1])
    sizes = (through, own) if owns_keys else (own, through)
    block_q, block_k = (min(size, max(16, triton.next_power_of_2(length))) for size, length in zip(sizes, longest))
    return {
        "heads": heads, "width": width, "padded": padded, "scale": math.log2(math.e) / math.sqrt(width),
        "precision": precision(query.dtype), **drop_settings(dropout), "block_q": block_q, "block_k": block_k,
        "num_warps": warps, "num_stages": stages,
    }  # fmt: skip


def _compact(x: Tensor) -> Tensor:
    """As the kernels read it: any stride of rows, heads and width contiguous."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _forward(query: Tensor, key: Tensor, value: Tensor, given: tuple[Sequences, Sequences, float, int]) -> tuple[Tensor, Tensor]:
    """out [Nq, A, D] and lse float32 [A, Nq]."""
    q_sequences, k_sequences, dropout, seed = given
    total, heads, width = query.shape
    if width > WIDEST:
        raise ValueError(f"the attention kernel takes heads of at most {WIDEST} numbers, not {width}")
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(heads, total, dtype=torch.float32, device=query.device)
    if not total:
        return out, lse
    chosen = settings(query, (q_sequences.longest, k_sequences.longest), dropout)
    blocks = triton.cdiv(q_sequences.longest, chosen["block_q"])
    with on(query):
        attend[(q_sequences.lengths.numel() * blocks * heads,)](
            query, key, value, out, lse, q_sequences.cumulative, k_sequences.cumulative,
            query.stride(0), key.stride(0), value.stride(0), total, blocks, seed, **chosen,
        )  # fmt: skip
    return out, lse


def _backward(ctx, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
    """Writes the gradients; dk and dv have the same stride of rows."""
    query, key, value, lse = ctx.saved_tensors
    q_sequences, k_sequences, dropout, seed = ctx.given
    total, heads, _ = query.shape
    if not total:
        dk.zero_()
        dv.zero_()
        return
    grad, delta = grad.contiguous(), torch.empty_like(lse)
    longest = q_sequences.longest, k_sequences.longest
    starts = q_sequences.cumulative, k_sequences.cumulative
    strides = query.stride(0), key.stride(0), value.stride(0)
    programs = q_sequences.lengths.numel() * heads
    with on(query):
        chosen = settings(query, longest, dropout)
        blocks = triton.cdiv(longest[0], chosen["block_q"])
        attend_dq[(programs * blocks,)](
            query, key, value, grad, lse, delta, dq, *starts, *strides, dq.stride(0), total, blocks, seed, **chosen
        )
        chosen = settings(query, longest, dropout, owns_keys=True)
        blocks = triton.cdiv(longest[1], chosen["block_k"])
        if blocks:
            attend_dkv[(programs * blocks,)](
                query, key, value, grad, lse, delta, dk, dv, *starts, *strides, dk.stride(0), total, blocks, seed, **chosen
            )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, *given) -> Tensor:
        query, key, value = _compact(query), _compact(key), _compact(value)
        out, lse = _forward(query, key, value, given)  # type: ignore[arg-type]
        ctx.save_for_backward(query, key, value, lse)
        ctx.given = given
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in ctx.saved_tensors[:3]]
        _backward(ctx, grad, *grads)
        return *grads, None, None, None, None


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, heads: int, sequences: Sequences, dropout: float, seed: int) -> Tensor:
        qkv = qkv.contiguous()
        query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        ctx.given = sequences, sequences, dropout, seed
        out, lse = _forward(query, key, value, ctx.given)
        ctx.save_for_backward(query, key, value, lse)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, heads, width = ctx.saved_tensors[0].shape
        dqkv = grad.new_empty(rows, 3, heads, width)
        _backward(ctx, grad, *dqkv.unbind(1))
        return dqkv.flatten(1), None, None, None, None


def attention(
    query: Tensor, key: Tensor, value: Tensor, q_sequences: Sequences, k_sequences: Sequences, dropout: float, seed: int
) -> Tensor:
    """query [Nq, A, D], key and value [Nk, A, D], one dtype (float32, bfloat16, float16), D <= 256 -> [Nq, A, D].

    Each sequence attends to itself alone; it may have fewer queries than keys, or none. The softmax is in float32.
    """
    return _Attention.apply(query, key, value, q_sequences, k_sequences, dropout, seed)


def self_attention(qkv: Tensor, heads: int, sequences: Sequences, dropout: float, seed: int) -> Tensor:
    """The same from one projection: qkv [N, 3H], query, key and value behind one another -> [N, A, D].

    Its gradient is written in place as [N, 3H]; three separate ones would be joined by a copy.
    """
    return _SelfAttention.apply(qkv, heads, sequences, dropout, seed)
