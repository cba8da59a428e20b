"""The processes that train, mine or evaluate together. Work is dealt out like cards; the first process collects it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tagsds.errors import UserError, command

Options = TypeVar("Options")
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class World:
    """This process among all, and its device. Rank r takes the items r, r + size, r + 2 size, ..."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This rank's part of the items, [N, ...] -> [about N / size, ...]."""
        return items[self.rank :: self.size]

    def even_share(self, items: Tensor) -> Tensor:
        """This rank's part of the items (at least one), [N, ...] -> [ceil(N / size), ...] on every rank: where the items do not
        divide evenly, the last one stands in for those that are missing at the end. `gather` drops such rows. For work that
        contains collectives, which all ranks must enter equally often."""
        rows = -(-len(items) // self.size)
        numbers = torch.arange(rows, device=items.device) * self.size + self.rank
        return items[numbers.clamp(max=len(items) - 1)]

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
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.is_main else None
        dist.gather(padded, parts)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total] if parts else None

    def agree(self, value: int) -> int:
        """The first rank's value, on every rank."""
        shared = torch.tensor(value, device=self.device)
        if self.size > 1:
            dist.broadcast(shared, 0)
        return int(shared)

    def agree_on_number(self, value: float) -> float:
        """The first rank's value in float64, on every rank."""
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.broadcast(shared, 0)
        return float(shared)

    def agree_on_text(self, text: str) -> str:
        """The first rank's text, on every rank."""
        return self.gather_objects(text)[0] if self.size > 1 else text

    def gather_objects(self, value: Thing) -> list[Thing]:
        """Each rank's value, which can be pickled, on every rank, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any_of(self, flags: Sequence[bool | Tensor]) -> list[bool]:
        """For each flag whether a rank has set it, on every rank. A flag may be a tensor [] on the device: nothing waits for it but
        this call."""
        row = torch.stack([torch.as_tensor(flag, device=self.device).to(torch.int32) for flag in flags])
        if self.size > 1:
            dist.all_reduce(row, dist.ReduceOp.MAX)
        return [bool(value) for value in row.tolist()]

    def broadcast(self, numbers: Tensor | None) -> Tensor:
        """int64 [N] of the first rank (None on the others), on every rank."""
        if self.size > 1:
            count = self.agree(0 if numbers is None else len(numbers))
            if numbers is None:
                numbers = torch.empty(count, dtype=torch.int64, device=self.device)
            dist.broadcast(numbers, 0)
        assert numbers is not None
        return numbers


def current_world(device: torch.device) -> World:
    """The process group that exists already, or one process."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    return World(device=device)


def device_index(local_rank: int, visible: int) -> int:
    """The CUDA device of a process with this rank on its machine that sees `visible` devices (at least one).

    `deepspeed` and `torchrun` show every process all devices, and its local rank counts among them. SLURM's `--gpus-per-task`
    shows each task its own device alone, which then has number 0 whatever the local rank.
    """
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise UserError(
            f"LOCAL_RANK is {local_rank} where only {visible} GPUs are visible (numbers 0 to {visible - 1}); start at most "
            f"{visible} processes on this machine (--num_gpus, --nproc-per-node or --ntasks-per-node), or show it more GPUs "
            "(CUDA_VISIBLE_DEVICES, --gpus-per-node)."
        )
    return local_rank


def claim_device() -> torch.device:
    """What each command that computes calls first: this process's device is chosen and made the current one, and float32 is made
    to be float32 on it."""
    keep_float32_exact()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", device_index(int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def keep_float32_exact() -> None:
    """No TF32, which rounds the factors of float32 products to 10 bits. cuDNN takes it by default in recurrent layers and
    convolutions; matrix products take it only where something switched it on.

    These are PyTorch's older switches. The newer ones (`fp32_precision`) set single operators, and reading an older switch then
    raises where they disagree; nothing here sets them (torch 2.11 and 2.13).
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def describe_process(env: MutableMapping[str, str]) -> None:
    """Fill in RANK, LOCAL_RANK and WORLD_SIZE where no launcher has: from SLURM's variables under `srun`, else alone.

    A batch script has SLURM_PROCID=0 and SLURM_NTASKS of the whole job too, but is no task of a step: what it starts is alone.
    Port 0 is any free one, so that several processes that are alone can run on one machine.
    """
    if "RANK" in env:
        return
    tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in env else "1"
    if tasks != "1":
        if "MASTER_ADDR" not in env or "MASTER_PORT" not in env:
            raise UserError(
                f"srun started {tasks} tasks without MASTER_ADDR and MASTER_PORT; export both in the batch script "
                "(the first node's name and a free port), or start one task a node through the deepspeed launcher."
            )
        env.update(RANK=env["SLURM_PROCID"], LOCAL_RANK=env["SLURM_LOCALID"], WORLD_SIZE=tasks)
        return
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    env.update({key: env.get(key, value) for key, value in alone.items()})


def start_world() -> World:
    """Join the processes of torchrun, deepspeed or srun on this one's device."""
    if "SLURM_STEP_ID" in os.environ:
        describe_process(os.environ)
    device = claim_device()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        # Collectives come after the scoring of a whole split, so the slowest rank may be long in coming.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=3))
    return current_world(device)


def stop_world() -> None:
    """Leave the process group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def run_command(parse: Callable[[], Options], work: Callable[[Options, World], object]) -> None:
    """A console command whose work several processes may share. An error is said before the group is left: the other ranks, who
    wait in a collective, would fail at that and say less."""
    try:
        command(lambda: work(parse(), start_world()))()
    finally:
        stop_world()


def end_process(main: Callable[[], object]) -> NoReturn:
    """Call `main`, then end this process with its status; inside a process group at once, without the interpreter's own ending.

    A thread of gloo may still hold the tensor of a collective that is over. To free it needs the interpreter, and while that is
    being torn down the thread ends the process by SIGABRT ("terminate called without an active exception"): one in some hundred
    runs, with its work done (https://github.com/pytorch/pytorch/pull/179291). DeepSpeed keeps references to the group, so that
    `stop_world` alone does not end its threads.
    """
    status: Any = 0
    try:
        main()
    except SystemExit as ending:
        status = ending.code
    if not (dist.is_available() and dist.is_initialized()):
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else status is not None)
