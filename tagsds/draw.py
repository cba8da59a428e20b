"""Explicit randomness: every draw comes from a generator made of (seed, step, slot, purpose).

A slot numbers the micro-batches of one optimiser step over all ranks: slot = rank * accumulation + micro-batch. A step can
so be replayed alone, and 1 rank x 2 accumulations draws what 2 ranks x 1 draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


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
