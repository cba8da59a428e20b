"""The offline candidates of a step: those that `tagsds-mine` wrote, or those re-mined with the weights of the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.source import BankSource
from tagsds.engine.checkpoint import steps_in
from tagsds.engine.weights import average_buffers
from tagsds.errors import UserError
from tagsds.formats.candidates import Candidates, write_candidates
from tagsds.formats.manifest import Manifest
from tagsds.negatives.remine import rescore
from tagsds.objectives import OBJECTIVES
from tagsds.ranks import World
from tagsds.scoring.mining import search_bank


def read_candidates(config: RunConfig, manifest: Manifest) -> Candidates:
    """Those that the run was given. UserError where there are none, or they are not of this corpus, or too few."""
    if not config.offline.candidates:
        raise UserError("the recipe draws offline negatives; give offline.candidates=FOLDER, which tagsds-mine writes.")
    candidates = Candidates.read(Path(config.offline.candidates), manifest, config.data.split)
    OBJECTIVES[config.objective].check_candidates(config, candidates)
    return candidates


class OfflineSource:
    """`at(step)` -> candidates. With `offline.remine_every` = N, the candidates of steps kN .. kN + N - 1 (k > 0) are found with
    the weights after kN steps, as `REMINERS` says for the model's way of scoring. They are kept in the run's folder as long as a
    checkpoint may need them, so that a resumed run draws the same."""

    def __init__(
        self, config: RunConfig, manifest: Manifest, source: BankSource, model: Any, scorer: Any,
        output: Path, world: World, zero_stage: int,
    ) -> None:  # fmt: skip
        self.config, self.manifest, self.model, self.scorer = config.offline, manifest, model, scorer
        self.split, self.folder, self.world = config.data.split, output / "candidates", world
        if not source.whole:
            raise UserError(
                f"offline candidates number the whole split '{self.split}', which data.max_gib={config.data.max_gib} does not "
                "hold; raise it."
            )
        if source.left_out:
            raise UserError(
                f"{manifest.folder}: {source.left_out} shard(s) were left out, and offline candidates number the whole split; "
                "copy the shards again, or train without offline candidates."
            )
        self.reminer = REMINERS[model.scored_by]
        if self.config.remine_every and zero_stage == 3 and not self.reminer.under_zero3:
            raise UserError(f"offline.remine_every of {model.kind} needs ZeRO stage 0, 1 or 2; take another DeepSpeed file.")
        self.mined = read_candidates(config, manifest)
        self._loaded: tuple[int, Candidates] = (0, self.mined)

    def at(self, step: int, bank: Bank) -> Candidates:
        """A collective where it re-mines: all ranks call it at every step."""
        every = self.config.remine_every
        due = step // every * every if every else 0
        if due != self._loaded[0]:
            folder = self.folder / f"step{due}"
            if due == step and not (folder / "candidates.json").is_file():
                self._load(due - every)  # a run resumed right here re-orders what the undisturbed one does: equal scores keep order
                self.remine(bank, folder)
            self._load(due)
        return self._loaded[1]

    def _load(self, mined_at: int) -> None:
        """Make the candidates of a step the current ones; step 0 stands for those the run was given."""
        if mined_at == self._loaded[0]:
            return
        folder = self.folder / f"step{mined_at}"
        if mined_at and not (folder / "candidates.json").is_file():
            raise UserError(f"{folder} is missing, which the checkpoint's run had mined; start the run anew.")
        self._loaded = (mined_at, Candidates.read(folder, self.manifest, self.split) if mined_at else self.mined)

    @torch.no_grad()
    def remine(self, bank: Bank, folder: Path) -> None:
        """Each rank finds its share of the rows; rank 0 writes them."""
        world = self.world
        images, captions = (torch.arange(count, device=bank.device) for count in (bank.num_images, bank.num_captions))
        rows = self.reminer.find(self, bank, images, captions)
        whole = [world.gather(part.to(bank.device), n) for part, n in zip(rows, (bank.num_images, bank.num_captions), strict=True)]
        if whole[0] is not None and whole[1] is not None:
            about = {"checkpoint": f"{folder.parent.parent} after {folder.name}", "checkpoint_sha256": ""}
            write_candidates(folder, self.manifest, self.split, whole[0].cpu().numpy(), whole[1].cpu().numpy(), about)
        world.wait()

    def forget(self, oldest: int) -> None:
        """Drop what no checkpoint from step `oldest` on can need."""
        if self.world.is_main and self.folder.is_dir():
            for step in [step for step in steps_in(self.folder) if step <= oldest][:-1]:
                shutil.rmtree(self.folder / f"step{step}", ignore_errors=True)


def search_anew(source: OfflineSource, bank: Bank, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """A model that encodes images and captions apart searches the whole split."""
    average_buffers(source.model, source.world)
    widths = source.mined.captions_of_image.shape[1], source.mined.images_of_caption.shape[1]
    return search_bank(source.model, bank, *widths, source.world.share(images), source.world.share(captions))


def order_anew(source: OfflineSource, bank: Bank, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """A model that needs a forward for every pair re-orders the first `offline.pool` of each row. Under ZeRO-3 each call of the
    scorer is a collective: ranks with equal shares make equally many."""
    world = source.world
    shares = world.even_share(images), world.even_share(captions)
    return rescore(source.scorer, bank, source._loaded[1], source.config.pool, *shares, world.is_main)


@dataclass(frozen=True)
class Reminer:
    """find(source, bank, images int64 [I], captions int64 [C]) -> this rank's share of the rows of both, int32 [., K].
    under_zero3: whether it works with partitioned weights."""

    find: Callable[[OfflineSource, Bank, Tensor, Tensor], tuple[Tensor, Tensor]]
    under_zero3: bool


REMINERS = {
    "sides": Reminer(search_anew, under_zero3=False),
    "pairs": Reminer(order_anew, under_zero3=True),
}
"""By `scored_by` of the model's class, as `tagsds.scoring.registry.SCORERS`."""
