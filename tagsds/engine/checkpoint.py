"""Checkpoints, resuming, and the export of a Hugging Face folder.

Since positives, negatives and dropout are functions of (seed, step, slot), a checkpoint is weights, optimiser state and a
`TrainState`: nothing is replayed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tagsds.engine.state import TrainState
from tagsds.engine.weights import fill, fresh_copy, whole_state
from tagsds.errors import UserError
from tagsds.files import write_checksums, write_json, write_text
from tagsds.models.card import Card
from tagsds.ranks import World


def save(engine, output: Path, state: TrainState, keep: int, world: World) -> int:
    """`output/checkpoints/step<N>` and the pointer `latest`, which moves only when all ranks have written. Returns the step of the
    oldest one that is kept (on rank 0)."""
    folder, oldest, step = output / "checkpoints", state.step, state.step
    about = state.as_dict()
    client = {"tagsds": about, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    engine.save_checkpoint(str(folder), tag=f"step{step}", client_state=client, save_latest=False)
    world.wait()  # DeepSpeed's own `latest` would move before the other ranks are done
    if world.is_main:
        write_json(folder / f"step{step}" / "about.json", about)
        write_text(folder / "latest", f"step{step}")
        # a later step's folder was cut short by a kill before this run was resumed: it must not count as the newest
        steps = [at for at in steps_in(folder) if at <= step]
        for old in steps[:-keep] if keep else []:
            shutil.rmtree(folder / f"step{old}", ignore_errors=True)
        oldest = steps[-keep:][0] if keep else steps[0]
    world.wait()
    return oldest


def load(engine, output: Path, state: TrainState) -> None:
    """Weights, optimiser and `state` of the last whole checkpoint; nothing where none was saved yet."""
    folder = output / "checkpoints"
    if not (folder / "latest").is_file():
        return
    tag = (folder / "latest").read_text().strip()
    about_path = folder / tag / "about.json"
    about: dict[str, Any] = json.loads(about_path.read_text()) if about_path.is_file() else {}
    state.check(about, folder / tag, output)
    path, client = engine.load_checkpoint(str(folder), tag=tag)
    if path is None:
        raise UserError(f"{folder / tag} could not be loaded; remove it and set {folder / 'latest'} to an older tag.")
    state.restore(client["tagsds"])


def export(
    model: PreTrainedModel, tokenizer, folder: Path, trained_heads: list[str], world: World, stage: int, card: Callable[[], Card]
) -> None:
    """A Hugging Face folder in fp32 (the optimiser's master weights where training ran in half precision), with its card. It
    replaces the folder that was there. Collective; the state of the random generators is left as it was."""
    state = whole_state(model, stage)
    if world.is_main:
        heads = {"trained_heads": sorted({*model.config.trained_heads, *trained_heads})} if trained_heads else {}
        whole = fresh_copy(model, **heads)
        fill(whole, state)
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        whole.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        card().write(temporary)
        write_checksums(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    world.wait()


def steps_in(folder: Path) -> list[int]:
    """Steps that have a folder step<N> in it, ascending."""
    return sorted(int(path.name[4:]) for path in folder.glob("step*") if path.name[4:].isdigit())


def latest_step(output: Path) -> int:
    """The step of the last whole checkpoint, 0 without one; nothing is loaded."""
    latest = output / "checkpoints" / "latest"
    tag = latest.read_text().strip() if latest.is_file() else ""
    return int(tag[4:]) if tag[:4] == "step" and tag[4:].isdigit() else 0
