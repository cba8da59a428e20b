"""Flash attention over packed sequences with dropout, forward and backward, for sequences of 20 to 150 tokens.

Shapes: Nq queries and Nk keys of all sequences, P = sequences, A = heads, D = width of a head.

Forward, for one block of queries of one sequence and head, with s = q k^T / sqrt(D) in units of log 2 and online softmax over
blocks of keys (Dao et al. 2022, arXiv 2205.14135):

    p = 2^(s - lse)        lse = log2 sum_j 2^s_j, kept for backward
    o = (m p / (1 - c)) v  m: mask of dropout, c: its probability

Backward computes p again from q, k and lse. With g = do v^T and delta = sum_d o do (which equals sum_j p_j dp_j, also under dropout):

    dp = m g / (1 - c)    ds = p (dp - delta)    dq = ds k / sqrt(D)    dk = ds^T q / sqrt(D)    dv = (m p / (1 - c))^T do

One kernel writes dq and delta, another dk and dv. Each number is summed by one program in a fixed order, without atomics, so that
gradients repeat to the bit. The mask is drawn from (seed, row, column) as in tagsds.kernels.dropout, and not stored:
row = query row * A + head, column = number of the key in its sequence.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tagsds.kernels.attention import Sequences
from tagsds.kernels.triton.bits import bits_of, row_bits
from tagsds.kernels.triton.device import drop_settings, on, precision

WIDEST = 256


@triton.jit
def _rows(table, start, row, rows, stride, head, width: tl.constexpr, padded: tl.constexpr):
    """Rows `row` of a sequence that starts at row `start` and has `rows` of them, one head: [block, padded], zeros outside."""
    column = tl.arange(0, padded)
    first = table + start.to(tl.int64) * stride + head * width
    inside = (row < rows)[:, None] & (column < width)[None, :]
    return tl.load(first + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _write(table, start, row, rows, stride, head, value, width: tl.constexpr, padded: tl.constexpr):
    column = tl.arange(0, padded)
    first = table + start.to(tl.int64) * stride + head * width
    inside = (row < rows)[:, None] & (column < width)[None, :]
    tl.store(first + row[:, None] * stride + column[None, :], value.to(table.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed", "total"])
def attend(
    query, key, value, out, lse, q_starts, k_starts,
    q_stride, k_stride, v_stride, total, blocks, seed,
    heads: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, scale: tl.constexpr, dot: tl.constexpr,
    threshold: tl.constexpr, keep_scale: tl.constexpr, block_q: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """out [total, A, D] and lse float32 [A, total] of one block of queries of one sequence and head."""
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % blocks
    sequence = tl.program_id(0) // heads // blocks
    q_start = tl.load(q_starts + sequence)
    queries = tl.load(q_starts + sequence + 1) - q_start
    if block * block_q >= queries:
        return
    k_start = tl.load(k_starts + sequence)
    keys = tl.load(k_starts + sequence + 1) - k_start
    row = block * block_q + tl.arange(0, block_q)
    q = _rows(query, q_start, row, queries, q_stride, head, width, padded)
    drawn = row_bits(seed, (q_start + row) * heads + head)

    highest = tl.full([block_q], float("-inf"), tl.float32)
    mass = tl.zeros([block_q], tl.float32)
    state = tl.zeros([block_q, padded], tl.float32)
    for start in range(0, keys, block_k):
        column = start + tl.arange(0, block_k)
        k = _rows(key, k_start, column, keys, k_stride, head, width, padded)
        s = tl.dot(q, tl.trans(k), input_precision=dot) * scale
        s = tl.where((column < keys)[None, :], s, float("-inf"))
        raised = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - raised[:, None])
        fade = tl.exp2(highest - raised)
        mass = mass * fade + tl.sum(p, 1)
        if threshold > 0:
            p = tl.where(bits_of(drawn[:, None], column[None, :]) >= threshold, p, 0.0)
        v = _rows(value, k_start, column, keys, v_stride, head, width, padded)
        state = tl.dot(p.to(v.dtype), v, state * fade[:, None], input_precision=dot)
        highest = raised
    mass = tl.where(mass > 0, mass, 1.0)  # a sequence without keys gives zeros
    state = state * (keep_scale / mass)[:, None]
    _write(out, q_start, row, queries, heads * width, head, state, width, padded)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(lse + head * total.to(tl.int64) + q_start + row, highest + tl.log2(mass), mask=row < queries)


@triton.jit(do_not_specialize=["seed", "total"])
def attend_dq(
    query, key, value, out, grad, lse, delta, dq, q_starts, k_starts,
    q_stride, k_stride, v_stride, dq_stride, total, blocks, seed,
    heads: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, scale: tl.constexpr, dot: tl.constexpr,
    threshold: tl.constexpr, keep_scale: tl.constexpr, block_q: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """dq, and delta float32 [A, total] for attend_dkv."""
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % blocks
    sequence = tl.program_id(0) // heads // blocks
    q_start = tl.load(q_starts + sequence)
    queries = tl.load(q_starts + sequence + 1) - q_start
    if block * block_q >= queries:
        return
    k_start = tl.load(k_starts + sequence)
    keys = tl.load(k_starts + sequence + 1) - k_start
    row = block * block_q + tl.arange(0, block_q)
    drawn = row_bits(seed, (q_start + row) * heads + head)
    place = head * total.to(tl.int64) + q_start + row

    do = _rows(grad, q_start, row, queries, heads * width, head, width, padded)
    o = _rows(out, q_start, row, queries, heads * width, head, width, padded)
    product = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + place, product, mask=row < queries)
    q = _rows(query, q_start, row, queries, q_stride, head, width, padded)
    norm = tl.load(lse + place, mask=row < queries, other=0.0)
    sums = tl.zeros([block_q, padded], tl.float32)
    for start in range(0, keys, block_k):
        column = start + tl.arange(0, block_k)
        k = _rows(key, k_start, column, keys, k_stride, head, width, padded)
        s = tl.dot(q, tl.trans(k), input_precision=dot) * scale
        p = tl.exp2(tl.where((column < keys)[None, :], s - norm[:, None], float("-inf")))
        v = _rows(value, k_start, column, keys, v_stride, head, width, padded)
        dp = tl.dot(do, tl.trans(v), input_precision=dot)
        if threshold > 0:
            dp = tl.where(bits_of(drawn[:, None], column[None, :]) >= threshold, dp * keep_scale, 0.0)
        ds = p * (dp - product[:, None])
        sums = tl.dot(ds.to(k.dtype), k, sums, input_precision=dot)
    sums *= scale * 0.6931471805599453  # back from units of log 2
    _write(dq, q_start, row, queries, dq_stride, head, sums, width, padded)


@triton.jit(do_not_specialize=["seed", "total"])
def attend_dkv(
    query, key, value, grad, lse, delta, dk, dv, q_starts, k_starts,
    q_stride, k_stride, v_stride, dk_stride, total, blocks, seed,
    heads: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, scale: tl.constexpr, dot: tl.constexpr,
    threshold: tl.constexpr, keep_scale: tl.constexpr, block_q: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys of one sequence and head; zeros where the sequence has no query."""
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % blocks
    sequence = tl.program_id(0) // heads // blocks
    k_start = tl.load(k_starts + sequence)
    keys = tl.load(k_starts + sequence + 1) - k_start
    if block * block_k >= keys:
        return
    q_start = tl.load(q_starts + sequence)
    queries = tl.load(q_starts + sequence + 1) - q_start
    column = block * block_k + tl.arange(0, block_k)
    k = _rows(key, k_start, column, keys, k_stride, head, width, padded)
    v = _rows(value, k_start, column, keys, v_stride, head, width, padded)

    k_sums = tl.zeros([block_k, padded], tl.float32)
    v_sums = tl.zeros([block_k, padded], tl.float32)
    for start in range(0, queries, block_q):
        row = start + tl.arange(0, block_q)
        place = head * total.to(tl.int64) + q_start + row
        norm = tl.load(lse + place, mask=row < queries, other=float("inf"))  # p = 0 where no query is
        product = tl.load(delta + place, mask=row < queries, other=0.0)
        q = _rows(query, q_start, row, queries, q_stride, head, width, padded)
        do = _rows(grad, q_start, row, queries, heads * width, head, width, padded)
        p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=dot) * scale - norm[None, :])  # [block_k, block_q]
        dp = tl.dot(v, tl.trans(do), input_precision=dot)
        dropped = p
        if threshold > 0:
            drawn = row_bits(seed, (q_start + row) * heads + head)
            keep = bits_of(drawn[None, :], column[:, None]) >= threshold
            dropped = tl.where(keep, p * keep_scale, 0.0)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        v_sums = tl.dot(dropped.to(do.dtype), do, v_sums, input_precision=dot)
        ds = p * (dp - product[None, :])
        k_sums = tl.dot(ds.to(q.dtype), q, k_sums, input_precision=dot)
    k_sums *= scale * 0.6931471805599453
    _write(dk, k_start, column, keys, dk_stride, head, k_sums, width, padded)
    _write(dv, k_start, column, keys, dk_stride, head, v_sums, width, padded)


def settings(query: Tensor, longest: tuple[int, int], dropout: float) -> dict[str, Any]:
    """Compile-time constants of the three kernels. `query` [Nq, A, D]; `longest`: most queries and most keys of a sequence.

    A block holds 64 rows, fewer where all sequences are shorter or the head is wide; tl.dot wants 16 at least.
    """
    _, heads, width = query.shape
    padded = max(16, triton.next_power_of_2(width))
    most = 64 if padded * query.element_size() <= 256 else 32
    block_q, block_k = (min(most, max(16, triton.next_power_of_2(length))) for length in longest)
    return {
        "heads": heads, "width": width, "padded": padded, "scale": math.log2(math.e) / math.sqrt(width),
        "dot": precision(query.dtype), **drop_settings(dropout), "block_q": block_q, "block_k": block_k,
        "num_warps": 4, "num_stages": 2 if padded * query.element_size() <= 256 else 1,
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
    query, key, value, out, lse = ctx.saved_tensors
    q_sequences, k_sequences, dropout, seed = ctx.given
    total, heads, _ = query.shape
    if not total:
        dk.zero_()
        dv.zero_()
        return
    grad, delta = grad.contiguous(), torch.empty_like(lse)
    chosen = settings(query, (q_sequences.longest, k_sequences.longest), dropout)
    starts = q_sequences.cumulative, k_sequences.cumulative
    strides = query.stride(0), key.stride(0), value.stride(0)
    sequences = q_sequences.lengths.numel()
    with on(query):
        blocks = triton.cdiv(q_sequences.longest, chosen["block_q"])
        attend_dq[(sequences * blocks * heads,)](
            query, key, value, out, grad, lse, delta, dq, *starts, *strides, dq.stride(0), total, blocks, seed, **chosen
        )
        blocks = triton.cdiv(k_sequences.longest, chosen["block_k"])
        if blocks:
            attend_dkv[(sequences * blocks * heads,)](
                query, key, value, grad, lse, delta, dk, dv, *starts, *strides, dk.stride(0), total, blocks, seed, **chosen
            )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, *given) -> Tensor:
        query, key, value = _compact(query), _compact(key), _compact(value)
        out, lse = _forward(query, key, value, given)  # type: ignore[arg-type]
        ctx.save_for_backward(query, key, value, out, lse)
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
        ctx.save_for_backward(query, key, value, out, lse)
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
