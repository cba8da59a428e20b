"""A checkpoint for other ranks or another ZeRO stage: one file a parameter and Adam state, as DeepSpeed's universal checkpoints.

DeepSpeed converts what its ZeRO stages 1 to 3 have written (`deepspeed.checkpoint.ds_to_universal`), and loads it at stage 3. The
rest is here: stage 0, whose optimiser is torch's own, and loading at stages 1 and 2. DeepSpeed's loader of stages 1 and 2 wants the
`optimizer_state.pt` of those stages, that of stage 3 one of its own, and it gives all parameter groups the weight decay of the
first: so only Adam's step comes from that file here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.engine.checkpoint import UNIVERSAL
from tagsds.errors import UserError

MODULE = "model."  # DeepSpeed's module is the objective, with the model in it
MOMENTS = ("exp_avg", "exp_avg_sq")


def convert(folder: Path, stage: int, optimised: tuple[list[str], list[str]]) -> Path:
    """Write `<folder>.universal/` from a checkpoint of ZeRO stage `stage`; its path. One that is there and whole is taken."""
    target = folder.with_name(folder.name + UNIVERSAL)
    if (target / "whole").is_file():
        return target
    aside = folder.with_name(folder.name + UNIVERSAL + ".tmp")
    for left in (aside, target):
        shutil.rmtree(left, ignore_errors=True)
    files = sorted(folder.glob("*mp_rank_00_model_states.pt"))
    if not files:
        raise UserError(f"{folder} holds no model_states.pt; copy the checkpoint again.")
    states = torch.load(files[0], map_location="cpu", weights_only=False)
    if stage == 0:
        step = from_stage_0(states, aside, optimised)
    else:
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(folder)]
        command += ["--output_folder", str(aside), "--num_extract_workers", "1", "--num_merge_workers", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        (folder.parent / "latest_universal").unlink(missing_ok=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"{folder} could not be converted ({last[0]}); resume with the ranks and ZeRO stage that wrote it.")
        step = step_of(aside / "zero", optimised)
    # what DeepSpeed's loader of stage 3 reads; hyperparameters are this run's own
    groups: list[dict[str, Any]] = [{"params": []}, {"params": []}]
    optimiser = {"state": {0: {"step": step}}, "param_groups": groups}
    torch.save({"optimizer_state_dict": optimiser, "param_groups": groups}, aside / "zero" / "optimizer_state.pt")
    names = {name for group in optimised for name in group}
    rest = states["others"] if stage == 3 else {key.removeprefix(MODULE): value for key, value in states["module"].items()}
    torch.save({key: value for key, value in rest.items() if key not in names}, aside / "others.pt")
    torch.save(states.get("average", {}), aside / "average.pt")
    for copied in aside.glob("*_model_states.pt"):
        copied.unlink()  # nothing reads them
    (aside / "whole").touch()
    aside.rename(target)
    return target


def from_stage_0(states: dict[str, Any], target: Path, optimised: tuple[list[str], list[str]]) -> Any:
    """The files of each parameter from the state of torch's optimiser; Adam's step."""
    optimiser = states.get("optimizer") or {}
    groups = optimiser.get("param_groups", [])
    if not groups or "state" not in optimiser or [len(g["params"]) for g in groups] != list(map(len, optimised)):
        raise UserError(
            f"{target.with_suffix('')} holds an optimiser of other parameters than this run's (fp16 at ZeRO 0 keeps them in "
            "another form); resume with the ranks, ZeRO stage and precision that wrote it."
        )
    step: Any = torch.tensor(0.0)
    for group, names in zip(groups, optimised, strict=True):
        for number, name in zip(group["params"], names, strict=True):
            weight = states["module"][MODULE + name].float()
            adam = optimiser["state"].get(number, {})
            step = adam.get("step", step)
            folder = target / "zero" / (MODULE + name)
            folder.mkdir(parents=True)
            values = {"fp32": weight} | {key: adam.get(key, torch.zeros_like(weight)) for key in MOMENTS}
            for key, value in values.items():
                torch.save({"param": value.float()}, folder / f"{key}.pt")
    return step


def step_of(zero: Path, optimised: tuple[list[str], list[str]]) -> Any:
    """Adam's step: of stages 1 and 2 it lies beside each parameter, of stage 3 in the optimiser's file."""
    first = zero / (MODULE + next(name for group in optimised for name in group)) / "step.pt"
    if first.is_file():
        return torch.load(first, weights_only=False)
    return torch.load(zero / "optimizer_state.pt", weights_only=False)["optimizer_state_dict"]["state"][0]["step"]


def load_universal(engine: Any, folder: Path, stage: int, optimised: tuple[list[str], list[str]]) -> dict[str, Tensor]:
    """Set the weights and the optimiser of a fresh engine. What is no optimised parameter, by name: buffers, frozen weights."""
    zero, optimiser = folder / "zero", engine.optimizer
    step = torch.load(zero / "optimizer_state.pt", weights_only=False)["optimizer_state_dict"]["state"][0]["step"]
    if stage == 3:
        optimiser.checkpoint_event_prologue()
        optimiser.load_hp_checkpoint_state_from_checkpoint_dir_stage3(str(folder))
        for state in optimiser.optimizer.state.values():  # DeepSpeed 0.19.8 gives all groups one tensor, which then counts double
            state["step"] = fresh(step)
        optimiser.checkpoint_event_epilogue()
    elif stage:
        fill_partitions(optimiser, zero, step)
        optimiser.update_lp_params()
    else:
        parameters = dict(engine.module.named_parameters())
        with torch.no_grad():
            for name in (MODULE + name for group in optimised for name in group):
                parameter = parameters[name]
                parameter.copy_(read(zero, name, "fp32").view_as(parameter))
                moments = {key: read(zero, name, key).view_as(parameter).to(parameter.device, copy=True) for key in MOMENTS}
                on_device = fresh(step).to(parameter.device) if torch.is_tensor(step) else step
                optimiser.state[parameter] = {"step": on_device, **moments}
    return torch.load(folder / "others.pt", weights_only=True)


def fill_partitions(optimiser: Any, zero: Path, step: Any) -> None:
    """ZeRO 1 and 2: each rank keeps a stretch of a group's parameters, laid end to end. Copy what falls into it."""
    for number, group in enumerate(optimiser.bit16_groups):
        flat = optimiser.single_partition_of_fp32_groups[number]
        moments = {key: torch.zeros_like(flat) for key in MOMENTS}
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue  # all of it lies on other ranks
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            name = optimiser.param_names[parameter]
            for key, into in ({"fp32": flat.data} | moments).items():
                whole = read(zero, name, key).flatten().narrow(0, there.start, there.numel)
                into.narrow(0, here.start, here.numel).copy_(whole)
        optimiser.optimizer.state[flat] = {"step": fresh(step), **moments}


def read(zero: Path, name: str, key: str) -> Tensor:
    """A parameter's values. Of stage 3 DeepSpeed writes a bare tensor, perhaps flat, of the other stages {"param": tensor}."""
    stored = torch.load(zero / name / f"{key}.pt", map_location="cpu", weights_only=False)
    return stored["param"] if isinstance(stored, dict) else stored


def fresh(step: Any) -> Any:
    return step.clone() if torch.is_tensor(step) else step
