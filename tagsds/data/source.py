"""The bank of a step: the whole partition where it fits in memory, else a window that moves over the shards."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.cache import Cache
from tagsds.data.sampler import PositiveSampler
from tagsds.data.shard_files import check_shard
from tagsds.data.shards import load_shards
from tagsds.draw import Draw, generator, seed_of
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tagsds.ranks import World
from tagsds.settings import above_zero, one_of


@dataclass
class DataConfig:
    """What is read of the corpus: group `data` of a recipe."""

    split: str = "train"
    """split of the corpus to train on"""
    max_gib: float = 64.0
    """memory (of the GPU, where there is one) that a rank may fill with the corpus; a larger corpus is walked through in windows
    of shards"""
    window_steps: int = 500
    """steps drawn from one window before the next is loaded"""
    checksum: bool = True
    """hold each shard against the manifest's sha256 when it is read: with a cache that is while the cache is built, and again only
    when the shard's time of change is another than then"""
    cache: str = ""
    """where the tokenised captions and region tables are kept, so that they are made once and the ranks of a node map the same
    pages: "" for the folder `cache` beside the shards, a path, or "none" to read the shards in each rank at each start. It takes
    about as much disk as the shards' features and boxes (and soft labels, once a run has asked for them), and may be deleted at
    any time. A folder that cannot be written is said once, and then counts as "none\""""

    bad_shards: str = "stop"
    """what a shard does that is missing or damaged when it is to be loaded: stop, with a sentence that names it, or skip, which
    leaves it out and says so (on all ranks, of a corpus that each holds whole)"""

    def check(self, group: str) -> None:
        above_zero(self, group, "window_steps", "max_gib")
        one_of(self, group, bad_shards=("stop", "skip"))


class BankSource:
    """`at(step)` -> (bank, window number). The window of a step is a pure function of (seed, step, rank): resuming loads it
    and goes on. Each rank's window holds other shards; a whole partition is the same on all ranks.

    One window is in memory at a time, provided that the caller drops its bank before it asks for the next step's. While it is
    used, a thread builds what the cache lacks of the next one and brings those files into the page cache, so that a change is a
    copy within memory. It loads no bank: `max_gib` is for one window.
    """

    def __init__(
        self, folder: str, config: DataConfig, seed: int, world: World, progress: bool = False, classes: bool = True
    ) -> None:
        self.manifest = read_manifest(folder)
        self.config, self.seed, self.world, self.progress = config, seed, world, progress
        self.rank, self.ranks, self.device = world.rank, world.size, world.device
        self.classes = classes  # soft labels are as wide as the features: only region classification needs them
        self.shards = self.manifest.shards(config.split)
        size = sum(shard["bytes"] for shard in self.shards) / 2**30
        self.whole = size <= config.max_gib
        self.per_window = len(self.shards)
        if not self.whole:
            self.per_window = int(config.max_gib / (max(shard["bytes"] for shard in self.shards) / 2**30))
            if self.per_window == 0:
                raise UserError(
                    f"data.max_gib={config.max_gib} holds no shard of {folder}; raise it or pack with a smaller --shard-size."
                )
        self.left_out = 0  # shards that could not be read
        self.waited_s = 0.0  # seconds spent in changes of the window, the first load left out
        self._loaded: tuple[int, Bank] | None = None
        self._ahead: threading.Thread | None = None
        self._sampler: tuple[int, PositiveSampler] | None = None

    def at(self, step: int) -> tuple[Bank, int]:
        """The bank of a step and its window's number. Where that is another window than before, a collective."""
        window = 0 if self.whole else step // self.config.window_steps
        if self._loaded is None or self._loaded[0] != window:
            begin, started = time.perf_counter(), self._loaded is not None
            self._loaded = None  # free the old window first
            if self._ahead is not None:
                self._ahead.join()
            chosen = self.shards if self.whole else [self.shards[i] for i in self.window(window)]
            self._loaded = (window, self._load(chosen).to(self.device))
            if started:
                self.waited_s += time.perf_counter() - begin
            if not self.whole and self.config.cache != "none":
                self._ahead = threading.Thread(target=self._prepare, args=(window + 1,), name="next window", daemon=True)
                self._ahead.start()
        return self._loaded[1], self._loaded[0]

    def _load(self, shards: list[dict[str, Any]]) -> Bank:
        """The shards' bank, with `data.bad_shards=skip` without those that cannot be read. The ranks tell each other what they
        miss before anything long begins. Collective."""
        bad = self._missing(shards)
        while True:
            good = [shard for shard in shards if shard["file"] not in bad]
            if bad:
                said = ", ".join(f"{file} ({why.rstrip('.')})" for file, why in list(bad.items())[:3])
                said += f" and {len(bad) - 3} more" if len(bad) > 3 else ""
                if self.config.bad_shards == "stop" or not good:
                    rest = "copy them again, or set data.bad_shards=skip" if good else "no shard is left; copy them again"
                    raise UserError(f"{self.manifest.folder}: {said}; {rest}.")
                if self.rank == 0 or not self.whole:
                    print(f"warning: left out: {said}", file=sys.stderr, flush=True)
                shards, self.left_out = good, self.left_out + len(bad)
            bank, bad = None, {}
            try:
                bank = self._read(good)
            except UserError:
                if self.config.bad_shards == "stop":
                    raise
                bad = {shard["file"]: why for shard in good if (why := self._why_not(shard))}
                if not bad:
                    raise
            if self.config.bad_shards == "skip":
                bad = self._of_all(bad)
            if bank is not None and not bad:
                return bank

    def _read(self, shards: list[dict[str, Any]], cache: str | None = None) -> Bank:
        config = self.config
        return load_shards(
            self.manifest, shards, None, config.checksum, self.progress, self.classes, cache or config.cache, self.device
        )

    def _missing(self, shards: list[dict[str, Any]]) -> dict[str, str]:
        """Shards that are not there or of another size, as any rank sees them: {file: what is wrong}."""
        bad = {}
        for shard in shards:
            try:
                check_shard(self.manifest.folder, shard, False)
            except UserError as error:
                bad[shard["file"]] = f"rank {self.rank} on {os.uname().nodename}: {error}"
        return self._of_all(bad)

    def _of_all(self, bad: dict[str, str]) -> dict[str, str]:
        """What any rank has found, where all hold the same shards or one of them must stop; else this rank's own."""
        every = {file: why for part in self.world.gather_objects(bad) for file, why in part.items()}
        return every if self.whole or self.config.bad_shards == "stop" else bad

    def _why_not(self, shard: dict[str, Any]) -> str:
        try:
            self._read([shard], cache="none")
        except UserError as error:
            return str(error)
        return ""

    def _prepare(self, window: int) -> None:
        """Whatever is wrong is found again, and reported, when the window is loaded."""
        with suppress(UserError, OSError):
            chosen = [self.shards[i] for i in self.window(window)]
            Cache(self.manifest, self.config.cache, self.config.checksum, self.classes).prepare(chosen)

    def window(self, number: int) -> list[int]:
        """Shards of a window: the ranks walk through one endless sequence of permutations, each taking its stretch in turn."""
        first = (number * self.ranks + self.rank) * self.per_window
        total, out = len(self.shards), []
        orders: dict[int, list[int]] = {}
        for position in range(first, first + self.per_window):
            epoch, place = divmod(position, total)
            if epoch not in orders:
                orders[epoch] = torch.randperm(total, generator=generator("cpu", self.seed, "shards", epoch)).tolist()
            order = orders[epoch]
            if order[place] not in out:
                out.append(order[place])
            else:  # a window that spans two passes meets a shard twice: take one it lacks, so that windows are of one size
                out.append(next(shard for shard in order if shard not in out))
        return out

    def positives(self, draw: Draw, batch: int, slots: int) -> Tensor:
        """Caption numbers of a micro-batch in the bank of its step, int64 [batch]. A whole partition is shared by all slots; a
        window is its rank's own, so the rank walks through it alone, and afresh in each window."""
        bank, window = self.at(draw.step)
        if not self.whole:
            slots //= self.ranks
            first_step = window * self.config.window_steps
            draw = Draw(draw.seed, draw.step - first_step, draw.slot - self.rank * slots)
        if self._sampler is None or self._sampler[0] != window:
            seed = seed_of(self.seed, "positives", window)
            self._sampler = (window, PositiveSampler(bank.num_captions, batch, slots, seed))
        return self._sampler[1].at(draw).to(bank.device)
