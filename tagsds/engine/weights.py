"""The weights of a model in training as plain fp32 tensors, however DeepSpeed keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from tagsds.ranks import World


def average_buffers(model: nn.Module, world: World) -> None:
    """BatchNorm's running statistics, which each rank gathers on its own batches: their mean on all ranks. Before a checkpoint, so
    that a resumed run and an undisturbed one hold the same."""
    if world.size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(world.size)


@contextmanager
def averaged_buffers(model: nn.Module, world: World) -> Iterator[None]:
    """Inside: as after `average_buffers`. Outside: each rank's own again, to the bit. Collective."""
    own = [buffer.clone() for buffer in model.buffers()]
    average_buffers(model, world)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in zip(model.buffers(), own, strict=True):
                buffer.copy_(kept)


def is_whole(model: nn.Module, stage: int) -> bool:
    """Whether the module itself holds all weights in fp32: no half precision, not partitioned."""
    return stage < 3 and next(model.parameters()).dtype == torch.float32


def whole_state(model: PreTrainedModel, stage: int) -> dict[str, Tensor]:
    """Every parameter and buffer on the CPU, parameters in fp32: the optimiser's master weights where training runs in half
    precision. Collective; every rank gets all of it. Parameters that are whole in fp32 already are not copied on a CPU."""
    from deepspeed.utils import safe_get_full_fp32_param

    half = next(model.parameters()).dtype != torch.float32
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if stage == 3 or (half and parameter.requires_grad):
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            state[name] = (_gathered(parameter) if full is None else full).detach().float().cpu().clone()
        else:
            state[name] = parameter.detach().float().cpu()
    return state | {name: buffer.detach().cpu() for name, buffer in model.named_buffers()}


def _gathered(parameter) -> Tensor:
    import deepspeed

    if not hasattr(parameter, "ds_id"):
        return parameter
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def fresh_copy(model: PreTrainedModel, **config: Any) -> Any:
    """Another model of the same class and config (`config`: changed keys) in fp32 on the CPU, its weights drawn. The state of the
    global random generator is left as it was."""
    changed = type(model.config).from_dict(model.config.to_dict() | config)
    with torch.random.fork_rng([]):
        return type(model)(changed)


def fill(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Load a `whole_state`. A decoder that is tied to the word embeddings has no entry of its own."""
    missing = model.load_state_dict(state, strict=False).missing_keys
    if unknown := [key for key in missing if not key.endswith("decoder.weight")]:
        raise RuntimeError(f"the state misses {unknown}")


def whole_others(model: nn.Module, stage: int) -> dict[str, Tensor]:
    """Buffers and frozen parameters, whole, on the CPU: what a model holds besides the optimiser's parameters. Collective under
    ZeRO-3."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    whole = {name: (_gathered(p) if stage == 3 else p) for name, p in frozen.items()} | dict(model.named_buffers())
    return {name: value.detach().cpu().clone() for name, value in whole.items()}


def set_others(model: nn.Module, values: dict[str, Tensor], stage: int) -> None:
    """The reverse of `whole_others`; names that the model lacks (a decoder tied to the embeddings) are left out. Collective under
    ZeRO-3."""
    import deepspeed

    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name in sorted(values.keys() & own.keys()):
            if stage == 3 and hasattr(own[name], "ds_id"):
                with deepspeed.zero.GatheredParameters([own[name]], modifier_rank=0):
                    own[name].copy_(values[name])
            else:
                own[name].copy_(values[name])
