"""Rows to spare: oneDNN compiles a product for each number of rows it meets, which takes longer than a small product itself.

A packed stream has another number of tokens each time. So tables of tokens are made with a few rows behind their end, and a product
runs over the next round number of rows: 32 numbers between two powers of two, at most 3 % more work. What stands in the rows
behind the end is never read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def round_rows(rows: int) -> int:
    """The next of 32 numbers between two powers of two; a multiple of 8."""
    step = max(8, 1 << max(rows.bit_length() - 6, 0))
    return (rows + step - 1) // step * step


def new_rows(like: Tensor, rows: int, width: int) -> Tensor:
    """Uninitialised [rows, width] of the dtype and device of `like`, with rows to spare behind it."""
    return like.new_empty(round_rows(rows), width)[:rows]


def with_spare(x: Tensor) -> Tensor:
    """x [N, W] with the rows behind its end as far as a round number, where its memory holds them; else x."""
    rows = round_rows(x.shape[0])
    if rows == x.shape[0] or not x.is_contiguous():
        return x
    if (x.storage_offset() + rows * x.shape[1]) * x.element_size() > x.untyped_storage().nbytes():
        return x
    return torch.as_strided(x, (rows, x.shape[1]), x.stride(), x.storage_offset())
