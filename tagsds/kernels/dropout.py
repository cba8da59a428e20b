"""Dropout whose mask is a function of (seed, row, column): every kernel draws the same one, and no mask is stored for backward.

An element is kept where its random bits (`tagsds.draw.random_bits`) >= floor(p * 2^32), and scaled by 1 / (1 - p).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.draw import random_bits


def draw_seed() -> int:
    """A seed of 31 bits from PyTorch's default generator of the CPU: reproducible after `torch.manual_seed`, on a GPU without
    waiting for it, and put back by activation checkpointing."""
    return int(torch.randint(1 << 31, ()))


def threshold(p: float) -> int:
    """Random bits below it are dropped, 0 <= p < 1."""
    return int(p * 2**32)


def kept(seed: int, rows: Tensor, columns: Tensor, p: float) -> Tensor:
    """bool: which elements stay, of the broadcast shape of `rows` and `columns` (int64). The reference of every kernel; slow."""
    return random_bits(seed, rows, columns) >= threshold(p)


def drop(x: Tensor, seed: int, p: float) -> Tensor:
    """Dropout of x [N, W] by row and column: the reference of the kernels."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return torch.where(kept(seed, rows[:, None], columns, p), x / (1 - p), torch.zeros((), dtype=x.dtype, device=x.device))
