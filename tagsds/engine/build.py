"""From an objective to a DeepSpeed engine."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tagsds.config import OptimiserConfig
from tagsds.engine.ds_config import offloads
from tagsds.engine.guard import StepGuard
from tagsds.errors import UserError
from tagsds.malloc import keep_freed_memory
from tagsds.ranks import World, claim_device, current_world, describe_process

COMPILATION_MINUTES = 15  # one takes 40 s to 2 minutes


def init_distributed() -> World:
    """Join the process group that the `deepspeed` launcher, torchrun or SLURM described; alone without any of them."""
    import deepspeed
    from deepspeed.utils import logger
    from transformers.utils import logging as progress

    logger.setLevel(logging.WARNING)
    progress.disable_progress_bar()
    # DeepSpeed 0.19.8 calls two collectives by the names that torch 2.13 deprecates, at every step
    warnings.filterwarnings("ignore", message=".*_tensor` is deprecated", category=FutureWarning)
    describe_process(os.environ)
    prepare_compilation()
    device = claim_device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        name_device_to_deepspeed(device, os.environ)
    elif "OMP_NUM_THREADS" not in os.environ:
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // per_node))
    if not on_gpu:
        keep_freed_memory()
    # a rank that is gone or hangs is the watchdog's business: mining and loading may let the others wait for hours
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", timeout=timedelta(hours=24), verbose=False)
    if not on_gpu:
        forget_shared_buffer(dist.get_rank())
    return current_world(device)


def prepare_compilation() -> None:
    """DeepSpeed compiles its all-reduce at the first launch, with the ninja that is found first: another version of it would
    compile anew each time, so the one of this environment comes first. A compilation that was killed leaves a lock file, for which
    every later launch would wait for good: one that is older than any compilation takes is removed."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    for lock in [*folder.glob("*/lock"), *folder.glob("*/*/lock")]:
        with suppress(OSError):
            if time.time() - lock.stat().st_mtime > 60 * COMPILATION_MINUTES:
                lock.unlink()


def name_device_to_deepspeed(device: torch.device, env: MutableMapping[str, str]) -> None:
    """DeepSpeed takes LOCAL_RANK for the number of the device: in its process group, its engine and ZeRO-3's partitions. It must
    be the number of the chosen one before any of them is made. Where it meets Open MPI's variable, the two must agree.

    What it takes LOCAL_RANK for besides (`use_node_local_storage`, `pipeline_loading_checkpoint`) is not used here.
    """
    env["LOCAL_RANK"] = str(device.index)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in env:
        env["OMPI_COMM_WORLD_LOCAL_RANK"] = str(device.index)


def forget_shared_buffer(rank: int) -> None:
    """Unlink the 66 MiB through which DeepSpeed's ranks of a CPU exchange gradients, once all of them have mapped it: nothing else
    does, and each launch would take as much memory for good."""
    dist.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)


def grouped_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the parameters that are decayed, and of those that are not (biases, LayerNorm), in the optimiser's order. By name:
    under zero.Init every parameter looks one-dimensional."""
    decayed: list[str] = []
    plain: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            leaf = name.rsplit(".", 1)[-1]  # a GRU's biases are bias_ih_l0 and the like
            free = leaf.startswith("bias") or "norm." in name.lower() or name.endswith("image_embedding.mask")
            (plain if free else decayed).append(name)
    return decayed, plain


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The optimiser's two groups."""
    parameters = dict(model.named_parameters())
    decayed, plain = ([parameters[name] for name in names] for names in grouped_names(model))
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimiser(model: nn.Module, config: OptimiserConfig, ds: dict[str, Any]) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config.weight_decay)
    options: dict[str, Any] = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
    if config.name == "apex":
        try:
            from apex.optimizers import FusedAdam as ApexAdam  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError("optimiser.name=apex, but NVIDIA's apex is not installed: pip install 'tagsds[apex]'.") from error
        return ApexAdam(groups, adam_w_mode=True, **options)
    if offloads(ds):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    if torch.cuda.is_available():
        from deepspeed.ops.adam import FusedAdam

        try:
            return FusedAdam(groups, adam_w_mode=True, **options)
        except Exception as error:  # it is compiled at first use and raises what the compiler's absence happens to raise
            warnings.warn(f"DeepSpeed's fused Adam does not build here ({error}); torch's fused AdamW is taken.", stacklevel=2)
    return torch.optim.AdamW(groups, fused=True, **options)


def build_engine(objective: nn.Module, optimiser: torch.optim.Optimizer, ds: dict[str, Any]):
    """The DeepSpeed engine. UserError for a DeepSpeed file of which DeepSpeed refuses a value."""
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfigError
    from pydantic import ValidationError

    try:
        engine, *_ = deepspeed.initialize(model=objective, optimizer=optimiser, config=ds, dist_init_required=False)
    except (ValidationError, DeepSpeedConfigError) as error:
        why = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(f"DeepSpeed refuses a value of --deepspeed_config ({why}); correct it.") from error
    return engine


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Linear warm-up, then linear decay to zero, or a tenth at each of `decay_at`: the rate of optimiser step `step`, from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay_at:
        return config.lr * 0.1 ** sum(step >= at for at in config.decay_at)
    return config.lr * max(0.0, (config.steps - step) / max(1, config.steps - config.warmup_steps))


def adam_eps(step: int, config: OptimiserConfig) -> float:
    """Adam's eps at optimiser step `step`, from 0, for an optimiser that adds it behind the bias correction."""
    return config.eps / (1 - config.betas[1] ** (step + 1)) ** 0.5 if config.eps_uncorrected else config.eps


def lockstep_of(stage: int, world: World) -> Callable[[int], int]:
    """Under ZeRO-3 every forward gathers parameters from all ranks: agree on the largest number of chunks."""
    if stage < 3 or world.size == 1:
        return lambda chunks: chunks

    def largest(chunks: int) -> int:
        count = torch.tensor(chunks, device=world.device)
        dist.all_reduce(count, dist.ReduceOp.MAX)
        return int(count)

    return largest


def gradient_norm(engine: Any, guard: StepGuard) -> float | None:
    """The norm of the gradient before clipping. DeepSpeed knows it but for ZeRO 0 in fp32: there the guard has taken it from the
    reduced gradients."""
    norm = engine.get_global_grad_norm()
    return guard.gradient_norm if norm is None else float(norm)
