"""Several processes evaluate together: work is dealt out like cards, the first process collects it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tagsds.errors import command

Options = TypeVar("Options")


@dataclass(frozen=True)
class World:
    """This process among those that evaluate. Rank r takes the items r, r + size, r + 2 size, ..."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This rank's part of the items, [N, ...] -> [about N / size, ...]."""
        return items[self.rank :: self.size]

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, part: Tensor, total: int) -> Tensor | None:
        """Rows of all ranks' shares back in order: part [about total / size, ...] -> [total, ...] on the first rank."""
        if self.size == 1:
            return part
        rows = -(-total // self.size)  # the shares differ by at most one row; a collective wants them equal
        padded = part.new_zeros(rows, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.first else None
        dist.gather(padded, parts)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total] if parts else None

    def broadcast(self, numbers: Tensor | None, device: torch.device) -> Tensor:
        """int64 [N] of the first rank (None on the others), on every rank."""
        if self.size > 1:
            count = torch.tensor([len(numbers) if numbers is not None else 0], device=device)
            dist.broadcast(count, 0)
            if numbers is None:
                numbers = torch.empty(int(count), dtype=torch.int64, device=device)
            dist.broadcast(numbers, 0)
        assert numbers is not None
        return numbers


def current_world() -> World:
    """The process group that exists already, or one process."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def start_world() -> tuple[World, torch.device]:
    """Join the processes of torchrun or deepspeed (WORLD_SIZE, RANK, LOCAL_RANK) and choose this one's device."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # Collectives come after the scoring of a whole split, so the slowest rank may be long in coming.
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=3))
    return current_world(), device


def stop_world() -> None:
    """Leave the process group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def run_command(parse: Callable[[], Options], work: Callable[[Options, World, torch.device], object]) -> None:
    """A console command whose work several processes may share. An error is said before the group is left: the other ranks, who
    wait in a collective, would fail at that and say less."""
    try:
        command(lambda: work(parse(), *start_world()))()
    finally:
        stop_world()
