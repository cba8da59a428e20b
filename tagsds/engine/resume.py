"""From the checkpoints of a run to the run that goes on: which one is whole, does it fit, load it.

The run may go on with other ranks, another ZeRO stage or another micro-batch. The true pairs of a step stay the same set in the
same order: their number is kept, and the micro-batches of a rank (`batch.accumulation`) follow from it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tagsds.engine.average import WeightAverage
from tagsds.engine.checkpoint import digest_of, steps_in
from tagsds.engine.state import VERSION, TrainState
from tagsds.engine.universal import convert, load_universal
from tagsds.engine.weights import set_others
from tagsds.errors import UserError, first_line, reason
from tagsds.files import sha256_of
from tagsds.ranks import World
from tagsds.training_settings import BatchConfig


@dataclass(frozen=True)
class Found:
    """A whole checkpoint: its folder, and its about.json."""

    folder: Path
    about: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.about["step"])


def find(output: Path, world: World) -> Found | None:
    """The newest whole checkpoint of a run, None where none was written yet. Every file is held against its sha256, the ranks share
    the work; a damaged checkpoint is named, and the one before it taken. Collective."""
    folder = output / "checkpoints"
    tags = world.gather_objects(tags_in(folder) if world.is_main else [])[0]
    problems: list[str] = []
    for tag in tags:
        found, problem = look_at(folder / tag, world)
        if found is not None:
            if problems and world.is_main:
                print("warning: " + " ".join(problems) + f" Going on from {found.folder.name}.", file=sys.stderr, flush=True)
            return found
        problems.append(problem)
    if problems:
        raise UserError(
            " ".join(problems) + f" No whole checkpoint is left in {folder}; copy one back, or remove that folder to start anew."
        )
    return None


def tags_in(folder: Path) -> list[str]:
    """Folders of checkpoints, newest first, from the one on that `latest` names."""
    steps = steps_in(folder)
    latest = folder / "latest"
    tag = latest.read_text(errors="replace").strip() if latest.is_file() else ""
    if tag[:4] == "step" and tag[4:].isdigit():
        last = int(tag[4:])
        return [f"step{step}" for step in sorted({*(s for s in steps if s <= last), last}, reverse=True)]
    return [f"step{step}" for step in reversed(steps)]


def look_at(folder: Path, world: World) -> tuple[Found | None, str]:
    """The checkpoint, or what is wrong with it. UserError for one that is whole and of another format. Collective."""
    about, problem = world.gather_objects(read_about(folder) if world.is_main else ({}, ""))[0]
    if about:
        check_version(about, folder)
        names = sorted(about.get("files", {}))[world.rank :: world.size]
        mine = next((why for name in names if (why := check_file(folder / name, about["files"][name]))), "")
        problem = next((why for why in world.gather_objects(mine) if why), "")
    return (None, problem) if problem else (Found(folder, about), "")


def read_about(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / "about.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        wrong = "" if isinstance(about, dict) and isinstance(about.get("files", {}), dict) else "it is no JSON object"
        if not wrong and not all(isinstance(about.get(key), int) for key in ("step", "ranks", "zero_stage")):
            wrong = "it is of something else"
        if not wrong and ("check" in about or "files" in about) and about.get("check") != digest_of(about):
            wrong = "it is damaged"
    except FileNotFoundError:
        wrong = "it is missing"
    except (OSError, ValueError, RecursionError) as error:
        wrong = first_line(error)
    return ({}, f"{path} cannot be read ({wrong}).") if wrong else (about, "")


def check_file(path: Path, entry: Any) -> str:
    """What is wrong with a file of the checkpoint, held against its [bytes, sha256]; "" for nothing."""
    try:
        size, digest = entry
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes where about.json says {size}."
        return "" if sha256_of(path) == digest else f"{path} has another sha256 than about.json says: it is damaged."
    except (TypeError, ValueError):
        return f"{path.parent / 'about.json'} holds no checksum of {path.name}."
    except OSError as error:
        return f"{path} cannot be read ({reason(error)})."


def check_version(about: dict[str, Any], folder: Path) -> None:
    """UserError for a checkpoint of a format that this version does not read."""
    version = about.get("version", 1)
    if version < VERSION:
        raise UserError(
            f"{folder} is of format {version}, from before the discrimination head's order and the place of Adam's eps changed "
            f"(format {VERSION}); start a new run with init=EXPORT, an export of {folder.parent.parent} or of the stage before it."
        )
    if version > VERSION:
        raise UserError(f"{folder} is of format {version}, and this version writes {VERSION}; resume with the newer one.")


def keep_true_pairs(batch: BatchConfig, found: Found, world: World, whole: bool) -> str:
    """Set `batch.accumulation` so that a step has the true pairs that it had; a sentence on what changed, or "".

    whole: whether all ranks hold the whole partition. Where each walks through windows of its own, the ranks must stay.
    """
    about = found.about
    ranks, slots = int(about.get("ranks", 1)), int(about.get("slots", 0))
    pairs = int(about.get("pairs", 0))
    if not slots:  # written before the state knew them
        pairs, slots = batch.pairs, batch.accumulation * ranks
    if ranks != world.size and not whole:
        raise UserError(
            f"{found.folder} was written by {ranks} rank(s), each of which walks through windows of its own; resume with {ranks}, "
            "or raise data.max_gib until a rank holds the whole corpus."
        )
    total = pairs * slots
    if total % (batch.pairs * world.size):
        raise UserError(
            f"{found.folder} has {total} true pairs a step ({slots} micro-batches of {pairs}), which {world.size} rank(s) x "
            f"batch.pairs={batch.pairs} do not divide; resume with ranks and batch.pairs whose product divides {total}."
        )
    asked, batch.accumulation = batch.accumulation, total // (batch.pairs * world.size)
    if asked not in (batch.accumulation, about.get("accumulation") or slots // ranks):
        raise UserError(
            f"batch.accumulation={asked} would change the {total} true pairs a step of {found.folder}; leave it out "
            f"({batch.accumulation} follows from {world.size} rank(s) x batch.pairs={batch.pairs}), or start a new run."
        )
    now, then = (batch.pairs, batch.accumulation, world.size), (pairs, slots // ranks, ranks)
    if now == then:
        return ""
    parts = "batch.pairs x batch.accumulation x ranks"
    return "a step of {} x {} x {} true pairs ({}) goes on as {} x {} x {}".format(*then, parts, *now)


def load(
    engine: Any, found: Found, state: TrainState, world: World, optimised: tuple[list[str], list[str]], average: WeightAverage
) -> str:
    """Weights, optimiser, `state` and `average` from a checkpoint; a sentence on the conversion, where one was needed. Collective.

    optimised: names of the model's decayed and undecayed parameters, in the optimiser's order.
    """
    now = (state.ranks, state.zero_stage)
    then = (int(found.about.get("ranks", 1)), int(found.about.get("zero_stage", 0)))
    said = ""
    if now == then:
        try:
            path, client = engine.load_checkpoint(str(found.folder.parent), tag=found.folder.name)
        except Exception as error:  # a file that is no checkpoint of this model raises whatever its parts happen to raise
            raise UserError(f"{found.folder} could not be loaded ({first_line(error)}); is it of this recipe?") from error
        if path is None:
            raise UserError(f"{found.folder} could not be loaded; remove it, and the one before it is taken.")
        average.restore(client.get("average"))
    else:
        said = f"{found.folder.name} of {then[0]} rank(s) at ZeRO {then[1]} is converted for {now[0]} rank(s) at ZeRO {now[1]}"
        if world.is_main:
            print(said, flush=True)
        why, folder = "", found.folder
        if world.is_main:
            try:
                folder = convert(found.folder, then[1], optimised)
            except UserError as error:
                why = str(error)
        if why := world.agree_on_text(why):
            raise UserError(why)
        folder = world.gather_objects(folder)[0]
        average.restore(torch.load(folder / "average.pt", map_location="cpu", weights_only=True))
        set_others(engine.module.model, load_universal(engine, folder, now[1], optimised), now[1])
    state.restore(found.about | {"ranks": now[0], "zero_stage": now[1]})
    return said
