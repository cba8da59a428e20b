"""The random bits of tagsds.kernels.dropout inside a kernel: bits(seed, row, column) in uint32 arithmetic, which wraps around."""

from __future__ import annotations

import triton
import triton.language as tl

from tagsds import draw

ROW = tl.constexpr(draw.ROW)
COLUMN = tl.constexpr(draw.COLUMN)
FIRST = tl.constexpr(draw.FIRST)
SECOND = tl.constexpr(draw.SECOND)


@triton.jit
def mix(bits):
    """MurmurHash3's 32-bit finaliser."""
    bits ^= bits >> 16
    bits *= FIRST
    bits ^= bits >> 13
    bits *= SECOND
    bits ^= bits >> 16
    return bits


@triton.jit
def row_bits(seed, row):
    """What all columns of a row share."""
    return mix(row.to(tl.uint32) * ROW + seed.to(tl.uint32))


@triton.jit
def bits_of(row, column):
    """`row` from row_bits; both broadcast."""
    return mix(row + column.to(tl.uint32) * COLUMN)
