"""The offline candidates of a step: those that `tagsds-mine` wrote, or those re-mined with the weights of the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.source import BankSource
from tagsds.engine.build import average_buffers
from tagsds.engine.checkpoint import steps_in
from tagsds.errors import UserError
from tagsds.formats.candidates import Candidates, write_candidates
from tagsds.formats.manifest import Manifest
from tagsds.models.matchers import Matcher
from tagsds.models.uniter import UniterModel
from tagsds.negatives.offline import check_ranks, needs_candidates
from tagsds.negatives.remine import rescore
from tagsds.ranks import World
from tagsds.scoring.mining import search_bank
from tagsds.scoring.scorer import Scorer


def uses_candidates(config: RunConfig) -> bool:
    """Whether any negatives of the run come from the offline candidates."""
    return config.objective != "pretrain" and needs_candidates(config.quintuplet, config.offline)


class OfflineSource:
    """`at(step)` -> candidates. With `offline.remine_every` = N, the candidates of steps kN .. kN + N - 1 (k > 0) are found with
    the weights after kN steps: a matcher searches the whole training set anew, the encoder re-orders the first `offline.pool` of
    each row. They are kept in the run's folder as long as a checkpoint may need them, so that a resumed run draws the same."""

    def __init__(
        self, config: RunConfig, manifest: Manifest, source: BankSource, model: Matcher | UniterModel, scorer: Scorer,
        output: Path, world: World, zero_stage: int,
    ) -> None:  # fmt: skip
        self.config, self.manifest, self.model, self.scorer = config.offline, manifest, model, scorer
        self.split, self.folder, self.world = config.data.split, output / "candidates", world
        if not self.config.candidates:
            raise UserError("the recipe draws offline negatives; give offline.candidates=FOLDER, which tagsds-mine writes.")
        if not source.whole:
            raise UserError(
                f"offline candidates number the whole split '{self.split}', which data.max_gib={config.data.max_gib} does not "
                "hold; raise it."
            )
        if self.config.remine_every and zero_stage == 3 and isinstance(model, Matcher):
            raise UserError("offline.remine_every of a matcher needs ZeRO stage 0, 1 or 2; take another DeepSpeed file.")
        self.mined = Candidates.read(Path(self.config.candidates), manifest, self.split)
        drawn = 1
        if config.objective == "retrieval" and config.offline.replace_random:
            drawn = config.negatives.count if self.config.score else config.negatives.keep
        check_ranks(self.mined, self.config.first, self.config.last, drawn)
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
        if isinstance(self.model, Matcher):
            average_buffers(self.model, world)
            widths = self.mined.captions_of_image.shape[1], self.mined.images_of_caption.shape[1]
            rows = search_bank(self.model, bank, *widths, world.share(images), world.share(captions))
        else:  # under ZeRO-3 each call of the scorer is a collective: ranks with equal shares make equally many
            shares = world.even_share(images), world.even_share(captions)
            rows = rescore(self.scorer, bank, self._loaded[1], self.config.pool, *shares, world.first)
        whole = [world.gather(part.to(bank.device), n) for part, n in zip(rows, (bank.num_images, bank.num_captions), strict=True)]
        if whole[0] is not None and whole[1] is not None:
            about = {"checkpoint": f"{folder.parent.parent} after {folder.name}", "checkpoint_sha256": ""}
            write_candidates(folder, self.manifest, self.split, whole[0].cpu().numpy(), whole[1].cpu().numpy(), about)
        world.wait()

    def forget(self, oldest: int) -> None:
        """Drop what no checkpoint from step `oldest` on can need."""
        if self.world.first and self.folder.is_dir():
            for step in [step for step in steps_in(self.folder) if step <= oldest][:-1]:
                shutil.rmtree(self.folder / f"step{step}", ignore_errors=True)
