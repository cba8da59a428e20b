"""Two operations that Triton's interpreter (3.9) computes otherwise than a GPU; compiled kernels take the plain ones."""

from __future__ import annotations

import triton
import triton.language as tl

from tagsds.kernels.triton import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def dot(a, b, sums, precision: tl.constexpr):
    """sums + a b in float32. The interpreter would multiply the bits of bfloat16 numbers as integers."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=precision)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """float32 to `dtype`, to the nearest, ties to even. The interpreter would cut bfloat16 off towards zero."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = ((bits >> 16) << 16).to(tl.float32, bitcast=True)
    return x.to(dtype)
