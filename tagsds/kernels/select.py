"""The k highest scores of every row, or of every column, of a matrix that comes in blocks.

Shapes: n rows that are kept, k wanted of each, room >= k places for them; a block of scores is [q, m].

On a CPU with a compiler each score of a block costs one compare with its row's bar (the k-th highest so far), the few above it
are appended, and a full row is cut back by a partial sort (`cpu/select.cpp`). Elsewhere, on a GPU among
others, `torch.topk` of each block is merged with what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.kernels import choice
from tagsds.kernels.linear import product


@dataclass
class Highest:
    """The k highest scores so far of n rows.

    scores    float32 [n, room], without order
    numbers   int32 [n, room], the number of each
    filled    int32 [n], how many of a row count
    bar       float32 [n], what a further score must exceed
    """

    k: int
    scores: Tensor
    numbers: Tensor
    filled: Tensor
    bar: Tensor

    @staticmethod
    def of(rows: int, k: int, device: torch.device) -> Highest:
        room = room_for(k, device)
        return Highest(
            k,
            torch.full((rows, room), -torch.inf, device=device),
            torch.full((rows, room), -1, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
            torch.full((rows,), -torch.inf, device=device),
        )

    @property
    def _kept(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.scores, self.numbers, self.filled, self.bar

    def part(self, start: int, stop: int) -> Highest:
        """Rows start..stop-1, which share memory with these."""
        return Highest(self.k, *(field[start:stop] for field in (self.scores, self.numbers, self.filled, self.bar)))

    def offer(self, block: Tensor, owners: tuple[Tensor, Tensor], first: int, by_column: bool = False) -> None:
        """Further scores of all rows: block float32 [q, m], q = n and the columns numbered from `first`; or `by_column` m = n, each
        column of the block being one row here, and the block's rows numbered from `first`. Among equal scores the one that came
        first stays. NaN and -inf never count.

        owners   int [q] and [m]: a score whose row and column have the same owner does not count
        """
        if _compiled(block):
            from tagsds.kernels.cpu.select import offer

            offer(self._kept, self.k, block, first, owners, by_column)
        else:
            self._offer(block, owners, first, by_column)

    def _offer(self, block: Tensor, owners: tuple[Tensor, Tensor], first: int, by_column: bool) -> None:
        """`offer` in torch."""
        scores = block.masked_fill((owners[0][:, None] == owners[1][None]) | block.isnan(), -torch.inf)
        if by_column:
            scores = scores.T.contiguous()
        scores, at = scores.topk(min(self.k, scores.shape[1]), dim=1)
        kept = torch.arange(self.scores.shape[1], device=block.device) < self.filled[:, None]
        every = torch.cat([self.scores.masked_fill(~kept, -torch.inf), scores], dim=1)
        numbers = torch.cat([self.numbers, at.to(torch.int32) + first], dim=1)
        best, at = every.topk(self.k, dim=1)
        self.scores[:, : self.k] = best
        self.numbers[:, : self.k] = numbers.gather(1, at)
        self.filled.copy_((best > -torch.inf).sum(dim=1))
        self.bar.copy_(best[:, -1])

    def settled(self, block: int = 1 << 16) -> tuple[Tensor, Tensor]:
        """Scores float32 [n, k], highest first and equal ones by number, and their numbers int32 [n, k]; -inf and -1 for none."""
        if _compiled(self.scores):
            from tagsds.kernels.cpu.select import settle

            settle(self._kept, self.k)
        else:
            for start in range(0, len(self.scores), block):
                self.part(start, start + block)._settle()
        return self.scores[:, : self.k], self.numbers[:, : self.k]

    def _settle(self) -> None:
        """`settled` in torch."""
        kept = torch.arange(self.scores.shape[1], device=self.scores.device) < self.filled[:, None]
        scores, numbers = in_order(self.scores.masked_fill(~kept, -torch.inf), self.numbers)
        scores[:, self.k :] = -torch.inf
        self.scores.copy_(scores)
        self.numbers.copy_(numbers.masked_fill(scores == -torch.inf, -1))
        self.filled.clamp_(max=self.k)


def in_order(scores: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [n, k] and their numbers [n, k], of each row the highest first, equal ones by number."""
    numbers, at = numbers.sort(dim=1)
    scores, order = scores.gather(1, at).sort(dim=1, descending=True, stable=True)
    return scores, numbers.gather(1, order)


def room_for(k: int, device: torch.device) -> int:
    """Places of a row: some above k where scores are appended, so that a row is not cut back for each."""
    return k + max(64, k // 2) if compiled_on(device) else k


def compiled_on(device: torch.device) -> bool:
    """Whether float32 scores on this device are compared with a bar, so that narrow blocks cost no more than wide ones."""
    return choice.select(device) == "cpu"


def dot_products(x: Tensor, y: Tensor) -> Tensor:
    """x [q, E] @ y [m, E]^T: [q, m]. On a CPU by oneDNN, which was a tenth faster than the BLAS behind `torch.mm`."""
    if choice.linear(x.device, x.dtype) == "onednn":
        return product(x, y, None)
    return x @ y.T


def _compiled(like: Tensor) -> bool:
    return like.dtype == torch.float32 and compiled_on(like.device)
