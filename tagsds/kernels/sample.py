"""Sampling of word pieces from softmax(logits / tau), the draws of TAGS-DC's refilling (arXiv 2111.03349), by counter-based noise.

Shapes: n = masked positions, H = hidden width, V = word pieces, S = draws of a position, B = blocks of `BLOCK` pieces.

The vocabulary is cut into blocks. A draw first takes a block, by the Gumbel-max trick over the blocks' log masses (argmax of
log mass + Gumbel noise follows softmax of the log masses), then a piece of the block, by the inverse of its cumulative mass.
Together they follow the softmax over all pieces. Each draw costs one noise per block instead of one per piece, and a kernel can go
through the blocks without keeping a table [n, V]. The noise is bits(seed, position * S + draw, 2 * block) for the Gumbel number and
the odd column behind it for the piece (tagsds.kernels.dropout): the reference and the Triton kernel draw the same pieces but for
rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.draw import COLUMN, ROW, WORD, mix

BLOCK = 128  # word pieces; part of the definition of the draws


def sample_pieces(states: Tensor, weight: Tensor, bias: Tensor, allowed: Tensor, tau: float, draws: int, seed: int) -> Tensor:
    """states [n, H], weight [V, H], bias [V], allowed bool [V] (one at least) -> int64 [n, S] from
    softmax((states @ weight.T + bias) / tau) over the allowed pieces. The reference: a float32 table [n, V] in memory."""
    logits = (states.float() @ weight.float().T + bias.float()) * (1 / tau)
    count, pieces = logits.shape
    blocks = -(-pieces // BLOCK)
    logits = logits.masked_fill(~allowed, -torch.inf)
    logits = torch.nn.functional.pad(logits, (0, blocks * BLOCK - pieces), value=-torch.inf).view(count, blocks, BLOCK)
    highest = logits.amax(dim=2)  # [n, B]
    mass = (logits - highest.clamp(min=torch.finfo(torch.float32).min)[:, :, None]).exp()
    total = mass.sum(dim=2)

    row = torch.arange(count * draws, device=states.device).view(count, draws, 1)
    column = 2 * torch.arange(blocks, device=states.device)
    block = (highest + total.log())[:, None, :].add(gumbel(_bits(seed, row, column))).argmax(dim=2)  # [n, S]
    target = _bits(seed, row[:, :, 0], 2 * block + 1).float() * 2**-32 * total.gather(1, block)
    wide = block[:, :, None].expand(-1, -1, BLOCK)
    reached = (mass.cumsum(dim=2).gather(1, wide) > target[:, :, None]) & (logits.gather(1, wide) > -torch.inf)
    inside = reached.int().argmax(dim=2)
    # rounding can leave the target at or above the last sum: the last allowed piece then
    last = BLOCK - 1 - (logits > -torch.inf).flip(2).int().argmax(dim=2)
    inside = torch.where(reached.any(dim=2), inside, last.gather(1, block))
    return block * BLOCK + inside


def gumbel(bits: Tensor) -> Tensor:
    """Standard Gumbel noise float32 of random bits (int64 that hold uint32): -log E with E = -log(1 - v), v = (bits + 0.5) / 2^32.

    Near v = 0, where the winners are, log(1 - v) would lose its digits: three terms of its series there.
    """
    v = (bits.float() + 0.5) * 2**-32
    series = v * (1 + v * (0.5 + v * (1 / 3)))
    return -torch.where(v < 0.01, series, -(1 - v).clamp(min=2**-25).log()).log()


def _bits(seed: int, row: Tensor, column: Tensor) -> Tensor:
    return mix((mix((row * ROW + seed) & WORD) + column * COLUMN) & WORD)
