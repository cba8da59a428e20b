"""Checkpoints of a run: `OUTPUT/checkpoints/step<N>/`, whole or not there.

Since positives, negatives and dropout are functions of (seed, step, slot), a checkpoint is weights, optimiser state and a
`TrainState`: nothing is replayed. It is written as `step<N>.saving`, gets its `about.json` with the sha256 of every file, and then
its name; `latest` moves last. `tagsds.engine.resume` reads it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tagsds.engine.average import WeightAverage
from tagsds.engine.state import TrainState
from tagsds.engine.weights import whole_others
from tagsds.errors import reason
from tagsds.files import write_json, write_text
from tagsds.ranks import World

SAVING = ".saving"
UNIVERSAL = ".universal"


class Checkpoints:
    """Writes the checkpoints of a run and keeps the last `keep` of them (0: all), and the one of the best validation.

    `begin` takes the state over and returns; `settle` gives the checkpoint its name once every rank has written its part. A save
    that fails, of a full disk for instance, costs nothing but itself: it is said, and the last whole checkpoint stays the last.
    """

    def __init__(self, engine: Any, output: Path, world: World, keep: int, background: bool = True) -> None:
        from tagsds.engine.writer import BackgroundWriter

        self.engine, self.world, self.keep = engine, world, keep
        self.folder = output / "checkpoints"
        self.writer = BackgroundWriter(background)
        engine.checkpoint_engine = self.writer
        self.pending: dict[str, Any] | None = None  # about.json of the checkpoint that is being written
        self.waited_s = 0.0  # seconds that the loop has spent here
        self.failed = ""  # why the last one could not be written

    def begin(self, state: TrainState, average: WeightAverage | None = None) -> None:
        """Copy the state of all ranks and start to write it. Collective; the checkpoint before this one must be settled."""
        started = time.perf_counter()
        about = state.as_dict()
        tag = f"step{state.step}{SAVING}"
        if why := self.world.agree_on_text(self._prepare(tag) if self.world.is_main else ""):
            self._give_up(tag, why)
            return
        model = self.engine.module.model
        client = {
            "tagsds": about,
            "average": average.as_dict() if average else {},
            "others": whole_others(model, state.zero_stage) if state.zero_stage == 3 else {},
            "universal_checkpoint_info": {"universal_checkpoint_version": 0.2},  # DeepSpeed converts no checkpoint without it
        }
        self.pending = about
        self.engine.save_checkpoint(str(self.folder), tag=tag, client_state=client, save_latest=False)
        self.waited_s += time.perf_counter() - started

    @property
    def writing(self) -> bool:
        """Whether this rank still writes."""
        return self.writer.writing

    def settle(self) -> int | None:
        """Wait for what `begin` started, and give it its name. Collective. The step of the oldest checkpoint that a run may be
        resumed from; None where nothing was written."""
        if self.pending is None:
            return None
        about, self.pending = self.pending, None
        step, started = about["step"], time.perf_counter()
        parts = self.world.gather_objects(self.writer.result())
        why = next((f"rank {rank}: {error}" for rank, (_, error) in enumerate(parts) if error), "")
        oldest = step
        if self.world.is_main and not why:
            files = {name: entry for part, _ in parts for name, entry in part.items()}
            try:
                oldest = self._publish(about | {"files": dict(sorted(files.items()))})
            except OSError as error:
                why = reason(error)
        why = self.world.agree_on_text(why)
        self.waited_s += time.perf_counter() - started
        if why:
            self._give_up(f"step{step}{SAVING}", why)
            return None
        self.failed = ""
        return oldest

    def _prepare(self, tag: str) -> str:
        try:
            shutil.rmtree(self.folder / tag, ignore_errors=True)
            (self.folder / tag).mkdir(parents=True)
        except OSError as error:
            return reason(error)
        return ""

    def _publish(self, about: dict[str, Any]) -> int:
        step = about["step"]
        aside, folder = self.folder / f"step{step}{SAVING}", self.folder / f"step{step}"
        write_json(aside / "about.json", about | {"check": digest_of(about)})
        shutil.rmtree(folder, ignore_errors=True)  # of a life of the run before the checkpoint that it was resumed from
        aside.rename(folder)
        write_text(self.folder / "latest", f"step{step}")
        # later steps belong to a life of the run before it was resumed: they must not count as the newest
        steps = [at for at in steps_in(self.folder) if at <= step]
        kept = steps[-self.keep :] if self.keep else steps
        for old in steps:
            if old not in kept and old != about["best_step"]:
                shutil.rmtree(self.folder / f"step{old}", ignore_errors=True)
        for left in [*self.folder.glob(f"step*{SAVING}"), *self.folder.glob(f"step*{UNIVERSAL}*")]:
            shutil.rmtree(left, ignore_errors=True)
        return kept[0]

    def _give_up(self, tag: str, why: str) -> None:
        self.failed = why
        if self.world.is_main:
            shutil.rmtree(self.folder / tag, ignore_errors=True)
            last = (self.folder / "latest").read_text().strip() if (self.folder / "latest").is_file() else "none"
            print(
                f"warning: the checkpoint of {tag.removesuffix(SAVING)} could not be written to {self.folder} ({why}); "
                f"the last whole one is {last}. Make room there: the next is tried at the usual step.",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def digest_of(about: dict[str, Any]) -> str:
    """Of an about.json's contents, but for the digest itself: so a damaged one is known, too."""
    rest = {key: value for key, value in about.items() if key != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def steps_in(folder: Path) -> list[int]:
    """Steps that have a folder step<N> in it, ascending."""
    return sorted(int(path.name[4:]) for path in folder.glob("step*") if path.name[4:].isdigit())
