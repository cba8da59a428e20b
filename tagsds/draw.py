"""Explicit randomness: every draw comes from a generator made of (seed, step, slot, purpose).

A slot numbers the micro-batches of one optimiser step over all ranks: slot = rank * accumulation + micro-batch. A step can
so be replayed alone, and 1 rank x 2 accumulations draws what 2 ranks x 1 draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(*key))


@dataclass(frozen=True)
class Draw:
    """Names one micro-batch: (seed, optimiser step, slot)."""

    seed: int
    step: int
    slot: int

    def generator(self, device: torch.device | str, purpose: str) -> torch.Generator:
        return generator(device, self.seed, self.step, self.slot, purpose)


ROW, COLUMN = 0x9E3779B1, 0x85EBCA77
FIRST, SECOND = 0x85EBCA6B, 0xC2B2AE35
WORD = 0xFFFFFFFF


def random_bits(seed: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Counter-based random bits, each a function of (seed, row, column): int64 that hold uint32, of the broadcast shape of `rows`
    and `columns` (int64). Two rounds of the finaliser of MurmurHash3 (Austin Appleby, public domain), all in uint32:

        bits(seed, row, column) = mix(mix(row * 0x9E3779B1 + seed) + column * 0x85EBCA77)
    """
    row = mix((rows * ROW + seed) & WORD)
    return mix((row + columns * COLUMN) & WORD)


def mix(bits: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser on int64 that hold uint32."""
    bits = bits ^ (bits >> 16)
    bits = (bits * FIRST) & WORD
    bits = bits ^ (bits >> 13)
    bits = (bits * SECOND) & WORD
    return bits ^ (bits >> 16)
