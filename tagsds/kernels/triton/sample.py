"""Word pieces for masked positions without a table of logits: the kernel of tagsds.kernels.sample, which derives the draws.

Shapes: n = masked positions, H = hidden width, V = word pieces, S = draws of a position, C = chunks of the vocabulary.

A program holds a block of positions and goes through a chunk of the vocabulary, 128 pieces at a time: their logits (tl.dot over H),
their masses, and for each draw the block's key (log mass + Gumbel noise) and the piece inside it; the best key so far stays in
registers. It writes [S] keys and pieces for each position; the best of the C chunks is taken at the end, on a table [C, n, S].
Logits are float32 sums, not rounded to the states' dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tagsds.kernels import sample
from tagsds.kernels.triton.bits import bits_of, row_bits
from tagsds.kernels.triton.device import on, precision, processors
from tagsds.kernels.triton.interpreter import dot

BLOCK = tl.constexpr(sample.BLOCK)


@triton.jit
def _gumbel(bits):
    """As tagsds.kernels.sample.gumbel."""
    v = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    series = v * (1 + v * (0.5 + v * 0.3333333333333333))
    return -tl.log(tl.where(v < 0.01, series, -tl.log(tl.maximum(1 - v, 2.9802322387695312e-08))))


@triton.jit
def _logits(states, weight, row, piece, count, pieces, width: tl.constexpr, step: tl.constexpr, precision: tl.constexpr):
    """states @ weight.T for the given rows and pieces: float32 [rows, pieces]."""
    sums = tl.zeros([row.shape[0], piece.shape[0]], tl.float32)
    for start in range(0, width, step):
        column = start + tl.arange(0, step)
        inside = column < width
        x = tl.load(
            states + row.to(tl.int64)[:, None] * width + column[None, :],
            mask=(row < count)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        w = tl.load(weight + piece[None, :] * width + column[:, None], mask=(piece < pieces)[None, :] & inside[:, None], other=0.0)
        sums = dot(x, w, sums, precision)
    return sums


@triton.jit(do_not_specialize=["seed", "count", "pieces", "share"])
def sample_chunk(
    states, weight, bias, allowed, keys, chosen, inverse_tau, seed, count, pieces, share,
    width: tl.constexpr, draws: tl.constexpr, padded: tl.constexpr, rows: tl.constexpr, step: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """keys float32 and chosen int32 [C, n, S] of a block of positions and a chunk of `share` blocks of pieces."""
    chunk = tl.program_id(1)
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    draw = tl.arange(0, padded)
    inside = tl.arange(0, BLOCK)
    best = tl.full([rows, padded], float("-inf"), tl.float32)
    best_piece = tl.zeros([rows, padded], tl.int32)
    for index in range(0, tl.minimum(share, (pieces + BLOCK - 1) // BLOCK - chunk * share)):
        block = chunk * share + index
        piece = block * BLOCK + inside
        fits = (piece < pieces) & (tl.load(allowed + piece, mask=piece < pieces, other=0) != 0)
        logit = _logits(states, weight, row, piece, count, pieces, width, step, precision)
        logit = (logit + tl.load(bias + piece, mask=piece < pieces, other=0.0).to(tl.float32)[None, :]) * inverse_tau
        logit = tl.where(fits[None, :], logit, float("-inf"))
        highest = tl.maximum(tl.max(logit, 1), -3.4028234663852886e38)
        mass = tl.exp(logit - highest[:, None])
        total = tl.sum(mass, 1)
        below = tl.cumsum(mass, 1)
        last = tl.max(tl.where(fits, inside, 0), 0)
        # the first allowed piece whose cumulative mass exceeds the target: others are given a sum that none does
        below = tl.where(fits[None, :], below, -1.0)
        for number in range(draws):
            drawn = row_bits(seed, row * draws + number)
            key = highest + tl.log(total) + _gumbel(bits_of(drawn, 2 * block))
            target = bits_of(drawn, 2 * block + 1).to(tl.float32) * 2.3283064365386963e-10 * total
            found = tl.min(tl.where(below > target[:, None], inside[None, :], BLOCK), 1)
            found = block * BLOCK + tl.minimum(found, last)
            better = (draw == number)[None, :] & (key[:, None] > best)
            best = tl.where(better, key[:, None], best)
            best_piece = tl.where(better, found[:, None], best_piece)
    place = (chunk * count + row).to(tl.int64)[:, None] * draws + draw[None, :]
    written = (row < count)[:, None] & (draw < draws)[None, :]
    tl.store(keys + place, best, mask=written)
    tl.store(chosen + place, best_piece, mask=written)


def settings(states: Tensor, draws: int) -> dict[str, Any]:
    """Compile-time constants of the kernel."""
    most = 64 if states.element_size() == 2 else 32
    return {
        "width": states.shape[1], "draws": draws, "padded": triton.next_power_of_2(draws),
        "rows": most if states.shape[0] > 32 else 16, "step": most, "precision": precision(states.dtype),
        "num_warps": 8, "num_stages": 3,
    }  # fmt: skip


@torch.no_grad()
def sample_pieces(states: Tensor, weight: Tensor, bias: Tensor, allowed: Tensor, tau: float, draws: int, seed: int) -> Tensor:
    """states [n, H], weight [V, H], bias [V], allowed bool [V] (one at least) -> int64 [n, S] from
    softmax((states @ weight.T + bias) / tau) over the allowed pieces. `weight` is read in the dtype of `states`."""
    count, pieces = states.shape[0], weight.shape[0]
    if not count or not draws:
        return torch.empty(count, draws, dtype=torch.int64, device=states.device)
    states, weight = states.contiguous(), weight.to(states.dtype).contiguous()
    chosen = settings(states, draws)
    groups = triton.cdiv(count, chosen["rows"])
    blocks = triton.cdiv(pieces, sample.BLOCK)
    share = triton.cdiv(blocks, min(blocks, max(1, triton.cdiv(2 * processors(states), groups))))
    chunks = triton.cdiv(blocks, share)
    keys = torch.empty(chunks, count, draws, dtype=torch.float32, device=states.device)
    drawn = torch.empty(chunks, count, draws, dtype=torch.int32, device=states.device)
    with on(states):
        sample_chunk[(groups, chunks)](
            states, weight, bias, allowed.to(torch.uint8), keys, drawn, 1 / tau, seed, count, pieces, share, **chosen
        )
    best = keys.argmax(dim=0, keepdim=True)
    return drawn.gather(0, best)[0].long()
