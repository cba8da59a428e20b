"""The table of all scores in files: where it exceeds the memory that is meant for it, or is to outlive the process.

    scores.json       what the scores are of; another run with the same settings goes on here, one with others is refused
    block-START.npy   float32 [n, C], the scores of images START..START+n-1, each written whole by the rank that scored it
    scores.npy        float32 [I, C], all blocks, once there are all; the blocks are removed then

Readers map scores.npy: figures are computed from it some rows at a time, by the same functions as from memory, and so are equal to
the last bit. The process holds one block; joining needs the table's size twice on disk for a moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tagsds.errors import UserError
from tagsds.files import join_npy, map_npy, read_json_object, sha256_of, write_json, write_npy
from tagsds.ranks import World

BLOCK = 50  # images of a block for a pair encoder, which scores the pairs of so many at a time anyway
GROUP = 128  # a block of a matcher has a multiple of it, as many as it encodes at a time


@dataclass(frozen=True)
class ScoreFiles:
    """A folder for the table of one model on one corpus.

    settings    whatever the scores depend on: weights, shards, the choice of images and captions, precision
    block_gib   most of a block, where larger blocks save work (a matcher encodes all captions for each)
    """

    folder: Path
    settings: dict[str, Any]
    block_gib: float
    world: World

    def for_weights(self, checkpoint: Path) -> ScoreFiles:
        """The files of another model on the same corpus: a folder in this one."""
        weights = weights_of(checkpoint)
        digest = hashlib.sha256("".join(weights.values()).encode()).hexdigest()
        return replace(self, folder=self.folder / f"member-{digest[:16]}", settings={**self.settings, "weights": weights})

    def fill(
        self, score: Callable[[Tensor], Tensor], images: int, captions: int, encodes_apart: bool, progress: bool = False
    ) -> tuple[Tensor | None, int]:
        """Collective: the mapped table float32 [I, C] on the first rank, and how many images had to be scored for it.

        score   scores of some images (int64 [n]) with all captions: float32 [n, C]
        """
        size, whole = self.block_images(images, captions, encodes_apart), self.folder / "scores.npy"
        self._open({**self.settings, "images": images, "captions": captions, "block_images": size})
        rows = {start: min(size, images - start) for start in range(0, images, size)}
        left = [start for start, count in rows.items() if not self._holds(self._block(start), count, captions)]
        if self._holds(whole, images, captions):
            left = []
        self.world.wait()  # all have looked before the first writes
        share = self.world.share(torch.tensor(left, dtype=torch.int64)).tolist()
        for start in tqdm(share, desc="score", unit=f"x{size} images", disable=not progress):
            write_npy(self._block(start), score(torch.arange(start, start + rows[start])).float().cpu().numpy())
        self.world.wait()
        table = None
        if self.world.is_main:
            if not self._holds(whole, images, captions):
                join_npy(whole, [(self._block(start), count) for start, count in rows.items()], captions, np.float32, self.remedy)
            for start in rows:
                self._block(start).unlink(missing_ok=True)
            table = torch.from_numpy(map_npy(whole, np.float32, (images, captions), self.remedy))
        self.world.wait()
        return table, sum(rows[start] for start in left)

    def block_images(self, images: int, captions: int, encodes_apart: bool) -> int:
        """Images of a block, whatever the number of ranks, which may change when a run goes on."""
        if not encodes_apart:
            return BLOCK
        return max(GROUP, min(int(self.block_gib * 2**30 / (4 * captions)), images // 8) // GROUP * GROUP)

    @property
    def remedy(self) -> str:
        return f"remove {self.folder} or name another --scores"

    def _open(self, settings: dict[str, Any]) -> None:
        """UserError where the folder holds other scores."""
        path = self.folder / "scores.json"
        if path.is_file():
            found = read_json_object(path, self.remedy)
            for key, value in settings.items():
                if found.get(key) != value:
                    raise UserError(f"{path} has {key} {found.get(key)} where this evaluation has {value}; {self.remedy}.")
        self.world.wait()
        if self.world.is_main and not path.is_file():
            write_json(path, settings)
        self.world.wait()

    def _block(self, start: int) -> Path:
        return self.folder / f"block-{start:09d}.npy"

    def _holds(self, path: Path, rows: int, captions: int) -> bool:
        """Whether the file is whole. A damaged one is scored anew."""
        try:
            return bool(len(map_npy(path, np.float32, (rows, captions), self.remedy)) == rows)
        except UserError:
            return False


def weights_of(checkpoint: Path) -> dict[str, str]:
    """sha256 of what decides a checkpoint's scores, by file name."""
    files = [*sorted(checkpoint.glob("*.safetensors")), checkpoint / "config.json"]
    return {path.name: sha256_of(path) for path in files if path.is_file()}


def table_gib(images: int, captions: int) -> float:
    """Size of the table."""
    return images * captions * 4 / 2**30
