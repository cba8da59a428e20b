"""Dropout whose mask is a function of (seed, row, column): every kernel draws the same one, and no mask is stored for backward.

The random bits of an element are two rounds of the finaliser of MurmurHash3 (Austin Appleby, public domain), all in uint32:

    bits(seed, row, column) = mix(mix(row * 0x9E3779B1 + seed) + column * 0x85EBCA77)

An element is kept where bits >= floor(p * 2^32), and scaled by 1 / (1 - p).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROW, COLUMN = 0x9E3779B1, 0x85EBCA77
FIRST, SECOND = 0x85EBCA6B, 0xC2B2AE35
WORD = 0xFFFFFFFF


def draw_seed() -> int:
    """A seed of 31 bits from PyTorch's default generator of the CPU: reproducible after `torch.manual_seed`, on a GPU without
    waiting for it, and put back by activation checkpointing."""
    return int(torch.randint(1 << 31, ()))


def threshold(p: float) -> int:
    """Random bits below it are dropped, 0 <= p < 1."""
    return int(p * 2**32)


def kept(seed: int, rows: Tensor, columns: Tensor, p: float) -> Tensor:
    """bool: which elements stay, of the broadcast shape of `rows` and `columns` (int64). The reference of every kernel; slow."""
    row = _mix((rows * ROW + seed) & WORD)
    return _mix((row + columns * COLUMN) & WORD) >= threshold(p)


def _mix(bits: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser on int64 that hold uint32."""
    bits = bits ^ (bits >> 16)
    bits = (bits * FIRST) & WORD
    bits = bits ^ (bits >> 13)
    bits = (bits * SECOND) & WORD
    return bits ^ (bits >> 16)


def drop(x: Tensor, seed: int, p: float) -> Tensor:
    """Dropout of x [N, W] by row and column: the reference of the kernels."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return torch.where(kept(seed, rows[:, None], columns, p), x / (1 - p), torch.zeros((), dtype=x.dtype, device=x.device))
