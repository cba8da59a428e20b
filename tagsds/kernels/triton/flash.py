"""The kernels of flash attention over packed sequences, forward and backward; tagsds.kernels.triton.attention launches them.

Shapes: Nq queries and Nk keys of all sequences, P = sequences, A = heads, D = width of a head.

Forward, for one block of queries of one sequence and head, with s = q k^T / sqrt(D) in units of log 2 and online softmax over
blocks of keys (Dao et al. 2022, arXiv 2205.14135):

    p = 2^(s - lse)        lse = log2 sum_j 2^s_j, kept for backward
    o = (m p / (1 - c)) v  m: mask of dropout, c: its probability

Backward computes p again from q, k and lse:

    dp = m (do v^T) / (1 - c)    delta = sum_j p_j dp_j    ds = p (dp - delta)
    dq = ds k / sqrt(D)          dk = ds^T q / sqrt(D)     dv = (m p / (1 - c))^T do

delta also equals sum_d o_d do_d, and other flash kernels compute it so. With o rounded to half precision that can triple the
error of dk in short sequences; here it is summed from p and dp, in a pass over the keys of its own.

One kernel writes delta and dq, another dk and dv. Each number is summed by one program in a fixed order, without atomics, so that
gradients repeat to the bit. The mask is drawn from (seed, row, column) as in tagsds.kernels.dropout, and not stored:
row = query row * A + head, column = number of the key in its sequence.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tagsds.kernels.triton.bits import bits_of, row_bits
from tagsds.kernels.triton.interpreter import cast, dot


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
    tl.store(first + row[:, None] * stride + column[None, :], cast(value, table.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed", "total"])
def attend(
    query, key, value, out, lse, q_starts, k_starts,
    q_stride, k_stride, v_stride, total, blocks, seed,
    heads: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, scale: tl.constexpr, precision: tl.constexpr,
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
        s = dot(q, tl.trans(k), tl.zeros([block_q, block_k], tl.float32), precision) * scale
        s = tl.where((column < keys)[None, :], s, float("-inf"))
        raised = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - raised[:, None])
        fade = tl.exp2(highest - raised)
        mass = mass * fade + tl.sum(p, 1)
        if threshold > 0:
            p = tl.where(bits_of(drawn[:, None], column[None, :]) >= threshold, p, 0.0)
        v = _rows(value, k_start, column, keys, v_stride, head, width, padded)
        state = dot(cast(p, v.dtype), v, state * fade[:, None], precision)
        highest = raised
    mass = tl.where(mass > 0, mass, 1.0)  # a sequence without keys gives zeros
    state = state * (keep_scale / mass)[:, None]
    _write(out, q_start, row, queries, heads * width, head, state, width, padded)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(lse + head * total.to(tl.int64) + q_start + row, highest + tl.log2(mass), mask=row < queries)


@triton.jit
def _p_and_dp(
    q, k, v, do, norm, drawn, column, keys,
    scale: tl.constexpr, precision: tl.constexpr, threshold: tl.constexpr, keep_scale: tl.constexpr,
):  # fmt: skip
    """p and dp of a block of queries and a block of keys, float32 [block_q, block_k]."""
    nothing = tl.zeros([q.shape[0], k.shape[0]], tl.float32)
    s = dot(q, tl.trans(k), nothing, precision) * scale
    p = tl.exp2(tl.where((column < keys)[None, :], s - norm[:, None], float("-inf")))
    dp = dot(do, tl.trans(v), nothing, precision)
    if threshold > 0:
        dp = tl.where(bits_of(drawn[:, None], column[None, :]) >= threshold, dp * keep_scale, 0.0)
    return p, dp


@triton.jit(do_not_specialize=["seed", "total"])
def attend_dq(
    query, key, value, grad, lse, delta, dq, q_starts, k_starts,
    q_stride, k_stride, v_stride, dq_stride, total, blocks, seed,
    heads: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, scale: tl.constexpr, precision: tl.constexpr,
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
    q = _rows(query, q_start, row, queries, q_stride, head, width, padded)
    norm = tl.load(lse + place, mask=row < queries, other=0.0)
    product = tl.zeros([block_q], tl.float32)
    for start in range(0, keys, block_k):
        column = start + tl.arange(0, block_k)
        k = _rows(key, k_start, column, keys, k_stride, head, width, padded)
        v = _rows(value, k_start, column, keys, v_stride, head, width, padded)
        p, dp = _p_and_dp(q, k, v, do, norm, drawn, column, keys, scale, precision, threshold, keep_scale)
        product += tl.sum(p * dp, 1)
    tl.store(delta + place, product, mask=row < queries)

    sums = tl.zeros([block_q, padded], tl.float32)
    for start in range(0, keys, block_k):
        column = start + tl.arange(0, block_k)
        k = _rows(key, k_start, column, keys, k_stride, head, width, padded)
        v = _rows(value, k_start, column, keys, v_stride, head, width, padded)
        p, dp = _p_and_dp(q, k, v, do, norm, drawn, column, keys, scale, precision, threshold, keep_scale)
        ds = p * (dp - product[:, None])
        sums = dot(cast(ds, k.dtype), k, sums, precision)
    sums *= scale * 0.6931471805599453  # back from units of log 2
    _write(dq, q_start, row, queries, dq_stride, head, sums, width, padded)


@triton.jit(do_not_specialize=["seed", "total"])
def attend_dkv(
    query, key, value, grad, lse, delta, dk, dv, q_starts, k_starts,
    q_stride, k_stride, v_stride, dk_stride, total, blocks, seed,
    heads: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, scale: tl.constexpr, precision: tl.constexpr,
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
        s = dot(k, tl.trans(q), tl.zeros([block_k, block_q], tl.float32), precision) * scale
        p = tl.exp2(s - norm[None, :])
        dp = dot(v, tl.trans(do), tl.zeros([block_k, block_q], tl.float32), precision)
        dropped = p
        if threshold > 0:
            drawn = row_bits(seed, (q_start + row) * heads + head)
            keep = bits_of(drawn[None, :], column[:, None]) >= threshold
            dropped = tl.where(keep, p * keep_scale, 0.0)
            dp = tl.where(keep, dp * keep_scale, 0.0)
        v_sums = dot(cast(dropped, do.dtype), do, v_sums, precision)
        ds = p * (dp - product[None, :])
        k_sums = dot(cast(ds, q.dtype), q, k_sums, precision)
    k_sums *= scale * 0.6931471805599453
    _write(dk, k_start, column, keys, dk_stride, head, k_sums, width, padded)
    _write(dv, k_start, column, keys, dk_stride, head, v_sums, width, padded)
