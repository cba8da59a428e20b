"""The DeepSpeed JSON: `"auto"` is filled from the recipe, which owns batch, accumulation, clipping and learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tagsds.config import RunConfig
from tagsds.errors import UserError
from tagsds.files import is_file
from tagsds.formats.shape import Any as AnyValue
from tagsds.formats.shape import Count, Of, read_object, shown
from tagsds.shipped import DS_CONFIGS, shipped

HALF = {"enabled?": Of(bool)}
SHAPE = {
    "fp16?": HALF, "bf16?": HALF, "optimizer?": AnyValue,
    "zero_optimization?": {"stage?": Count(0, 3), "offload_optimizer?": ({"device?": Of(str)}, None)},
}  # fmt: skip


def ds_config_path(given: Path | str) -> Path:
    """The file that --deepspeed_config names: a path, or one of those that come with the package, by name. `zero2_bf16`,
    `zero2_bf16.json` and `ds_configs/zero2_bf16.json` name the same one where no such path exists. UserError for no file."""
    path = Path(given)
    if is_file(path):
        return path
    folder = shipped(DS_CONFIGS)
    if path.parent in (Path("."), Path(DS_CONFIGS)) and is_file(found := folder / f"{path.name.removesuffix('.json')}.json"):
        return found
    known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
    raise UserError(f"{path} does not exist; give a DeepSpeed JSON, or one of these names: {known}.")


def read_ds_config(path: Path | str, config: RunConfig, world_size: int, on_gpu: bool) -> dict[str, Any]:
    """The JSON with every "auto" resolved. A value that contradicts the recipe is an error, not a silent winner."""
    path = ds_config_path(path)
    ds = read_object(path, SHAPE, "a DeepSpeed file", "correct it, or take one of ds_configs/")

    owned = {
        "train_micro_batch_size_per_gpu": ("batch.pairs", config.batch.pairs),
        "gradient_accumulation_steps": ("batch.accumulation", config.batch.accumulation),
        "train_batch_size": (
            "batch.pairs x batch.accumulation x ranks",
            config.batch.pairs * config.batch.accumulation * world_size,
        ),
        "gradient_clipping": ("optimiser.clip", config.optimiser.clip),
    }
    for key, (owner, value) in owned.items():
        given = ds.get(key, "auto")
        if given != "auto" and given != value:
            raise UserError(f'{path}: {key} is {shown(given)}, but the recipe owns it ({owner} = {value}); write "auto" there.')
        ds[key] = value
    for key in ("optimizer", "scheduler"):
        if key in ds:
            raise UserError(f"{path}: '{key}' belongs to the recipe (optimiser.*); take it out of the DeepSpeed file.")
    if ds.get("fp16", {}).get("enabled") and not on_gpu:
        raise UserError(f"{path}: fp16 needs a GPU; on a CPU use zero2_bf16.json or an fp32 file.")
    if ds.get("bf16", {}).get("enabled") and zero_stage(ds) == 0:
        # DeepSpeed 0.19.8 takes an empty Adam step at start-up there and stays one step behind
        raise UserError(f"{path}: bf16 at ZeRO stage 0 runs one optimiser step late in DeepSpeed; use stage 1 or above.")
    sums = ds.get("data_types", {}).get("grad_accum_dtype")
    if ds.get("bf16", {}).get("enabled") and (zero_stage(ds), sums, offloads(ds)) == (1, "fp32", False):
        if config.batch.accumulation > 1:  # DeepSpeed 0.19.8: 2 micro-batches move the weights 16 % too far there
            raise UserError(f"{path}: bf16 at ZeRO stage 1 sums micro-batches wrongly in DeepSpeed; use stage 2 or 3.")
    if offloads(ds) and zero_stage(ds) == 0:
        raise UserError(f"{path}: offload_optimizer means nothing at ZeRO stage 0; use stage 1 or above, or take it out.")
    ds["zero_allow_untested_optimizer"] = True
    ds.setdefault("steps_per_print", 10**9)
    return ds


def zero_stage(ds: dict[str, Any]) -> int:
    return int(ds.get("zero_optimization", {}).get("stage", 0))


def offloads(ds: dict[str, Any]) -> bool:
    offload = ds.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"
