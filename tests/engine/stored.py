"""Checkpoints of a run without a run: what the tests of saving, of resuming and of damage begin with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo

from tagsds.engine.checkpoint import Checkpoints
from tagsds.engine.state import TrainState
from tagsds.ranks import World


class Engine:
    """Stores two files as DeepSpeed does."""

    module = SimpleNamespace(model=torch.nn.Linear(2, 2))
    checkpoint_engine: Any = None

    def save_checkpoint(self, folder: str, tag: str, client_state: dict, save_latest: bool) -> None:
        info = CheckpointCommitInfo(tag=tag, save_dir=folder, save_latest=save_latest)
        self.checkpoint_engine.create(info)
        step = client_state["tagsds"]["step"]
        for name in ("model.pt", "optimiser.pt"):
            self.checkpoint_engine.save({"weights": torch.full((3000,), float(step))}, f"{folder}/{tag}/{name}")
        self.checkpoint_engine.commit(info)


def saved(output: Path, *steps: int, keep: int = 0, best_step: int = 0) -> Checkpoints:
    checkpoints = Checkpoints(Engine(), output, World(), keep)
    for step in steps:
        checkpoints.begin(TrainState(step=step, best_step=best_step))
        checkpoints.settle()
    return checkpoints
