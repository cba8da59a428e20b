"""Checkpoints, resuming, and the export of a Hugging Face folder.

Since positives, negatives and dropout are functions of (seed, step, slot), a checkpoint is weights, optimiser state and the
step: nothing is replayed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tagsds.errors import UserError
from tagsds.files import write_json, write_text
from tagsds.models.card import Card
from tagsds.ranks import World


def save(engine, output: Path, step: int, keep: int, world: World, stage: int) -> int:
    """`output/checkpoints/step<N>` and the pointer `latest`, which moves only when all ranks have written. Returns the step of the
    oldest one that is kept (on rank 0)."""
    folder, oldest = output / "checkpoints", step
    about = {"step": step, "ranks": world.size, "zero_stage": stage}
    client = {"tagsds": about, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    engine.save_checkpoint(str(folder), tag=f"step{step}", client_state=client, save_latest=False)
    world.wait()  # DeepSpeed's own `latest` would move before the other ranks are done
    if world.first:
        write_json(folder / f"step{step}" / "about.json", about)
        write_text(folder / "latest", f"step{step}")
        steps = steps_in(folder)
        for old in steps[:-keep] if keep else []:
            shutil.rmtree(folder / f"step{old}", ignore_errors=True)
        oldest = steps[-keep:][0] if keep else steps[0]
    world.wait()
    return oldest


def load(engine, output: Path, world: World, stage: int) -> int:
    """The step to go on from: 0 where nothing was saved yet."""
    folder = output / "checkpoints"
    if not (folder / "latest").is_file():
        return 0
    tag = (folder / "latest").read_text().strip()
    about_path = folder / tag / "about.json"
    about: dict[str, Any] = json.loads(about_path.read_text()) if about_path.is_file() else {}
    for key, now in (("ranks", world.size), ("zero_stage", stage)):
        if about.get(key, now) != now:
            raise UserError(
                f"{folder / tag} was written with {key}={about[key]} and cannot be read with {key}={now}; resume with "
                f"{key}={about[key]}, or start a new run with init={output} once it has an export."
            )
    path, client = engine.load_checkpoint(str(folder), tag=tag)
    if path is None:
        raise UserError(f"{folder / tag} could not be loaded; remove it and set {folder / 'latest'} to an older tag.")
    return int(client["tagsds"]["step"])


def export(
    engine, model: PreTrainedModel, tokenizer, folder: Path, trained_heads: list[str], world: World, stage: int,
    card: Callable[[], Card],
) -> None:  # fmt: skip
    """A Hugging Face folder in fp32 (the optimiser's master weights where training ran in half precision), with its card."""
    from deepspeed.utils import safe_get_full_fp32_param

    half = next(model.parameters()).dtype != torch.float32
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if stage == 3 or (half and parameter.requires_grad):
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            state[name] = (_gathered(parameter) if full is None else full).detach().float().cpu().clone()
        else:
            state[name] = parameter.detach().float().cpu()
    state |= {name: buffer.detach().cpu() for name, buffer in model.named_buffers()}
    if world.first:
        config = type(model.config).from_dict(model.config.to_dict())
        if trained_heads:
            config.trained_heads = sorted({*config.trained_heads, *trained_heads})
        whole = type(model)(config)
        missing = whole.load_state_dict(state, strict=False).missing_keys
        if unknown := [key for key in missing if not key.endswith("decoder.weight")]:
            raise RuntimeError(f"export misses {unknown}")
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        whole.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        card().write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    world.wait()


def _gathered(parameter) -> torch.Tensor:
    import deepspeed

    if not hasattr(parameter, "ds_id"):
        return parameter
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def steps_in(folder: Path) -> list[int]:
    """Steps that have a folder step<N> in it, ascending."""
    return sorted(int(path.name[4:]) for path in folder.glob("step*") if path.name[4:].isdigit())


def latest_step(output: Path) -> int:
    """The step of the last whole checkpoint, 0 without one; nothing is loaded."""
    latest = output / "checkpoints" / "latest"
    tag = latest.read_text().strip() if latest.is_file() else ""
    return int(tag[4:]) if tag[:4] == "step" and tag[4:].isdigit() else 0
