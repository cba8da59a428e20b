"""Running tops of the captions that outlive the process: a killed search goes on from what is on disk, and the ranks' are merged.

Each process searches blocks of images and keeps, for every caption, the k highest among the images of its blocks. From time to time
it writes these: `tops-N.json` names the file and the blocks that are in it, and is written last, so that both belong together. In
the end each caption's tops are the k highest of all files'. N is no rank: a run that goes on with other processes takes over files
of the former ones, and leaves those that are too many as they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagsds.errors import UserError
from tagsds.files import atomic, map_npy, read_json_object, write_json
from tagsds.kernels.select import Highest, in_order
from tagsds.ranks import World

SAVE_SECONDS = 600.0  # between two writings of a process's tops: what a kill may cost. COCO's take 1.7 GiB
ROWS = 1 << 15  # read or written at a time


class KeptTops:
    """The tops of `rows` captions, of this process in memory and of all in files int32 [rows, 2, k]: the bits of the float32
    scores, and the numbers, highest first."""

    def __init__(self, folder: Path, rows: int, k: int, world: World) -> None:
        self.folder, self.rows, self.k, self.world = folder, rows, k, world
        self.remedy = f"remove {folder} and run the command again"
        found = self._listed()
        self.done = {block for state in found.values() for block in state["blocks"]}
        numbers = sorted(found)
        fresh = (number for number in count() if number not in found)
        while len(numbers) < world.size:
            numbers.append(next(fresh))
        self.number = numbers[world.rank]
        self.state: dict[str, Any] = found.get(self.number, {"file": "", "blocks": []})
        self.saved = time.monotonic()
        self._highest: Highest | None = None
        world.wait()  # all have looked before the first writes

    @property
    def highest(self) -> Highest:
        """This process's own, read or begun when they are first needed."""
        if self._highest is None:
            self._highest = Highest.of(self.rows, self.k, self.world.device)
            if self.state["file"]:
                for start in range(0, self.rows, ROWS):
                    part = self._highest.part(start, start + ROWS)
                    scores, numbers = self._read(self.state["file"], start, start + ROWS)
                    part.scores[:, : self.k] = scores.to(part.scores.device)
                    part.numbers[:, : self.k] = numbers.to(part.scores.device)
                    part.filled.copy_((scores > -torch.inf).sum(dim=1))
                    part.bar.copy_(scores[:, -1])
        return self._highest

    def took(self, block: int) -> None:
        """A block of images is in `highest`. Written where the last time is SAVE_SECONDS ago."""
        self.state["blocks"].append(block)
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the tops, if this process has any that are not written. The former file stays until the new one is named."""
        if self._highest is None:
            return
        scores, numbers = self._highest.settled()
        name = f"tops-{self.number}-{'b' if self.state['file'].endswith('-a.npy') else 'a'}.npy"
        with atomic(self.folder / name) as stream:
            header = {"descr": "<i4", "fortran_order": False, "shape": (self.rows, 2, self.k)}
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, self.rows, ROWS):
                part = slice(start, start + ROWS)
                both = torch.stack([scores[part].contiguous().view(torch.int32), numbers[part]], dim=1)
                stream.write(both.cpu().numpy().tobytes())
        former, self.state["file"] = self.state["file"], name
        write_json(self.folder / f"tops-{self.number}.json", self.state)
        if former:
            (self.folder / former).unlink(missing_ok=True)
        self.saved = time.monotonic()

    def finish(self, blocks: Sequence[int]) -> None:
        """Collective, before `merged`. UserError unless all processes together hold each of the blocks once. One process without
        files of others merges nothing, and need not write what it holds."""
        found = {**self._listed(), self.number: self.state}
        self.alone = self.world.size == 1 and len(found) == 1
        if not self.alone:
            self.save()
            self.world.wait()
            found = self._listed()
        self.files = [state["file"] for state in found.values()]
        held = sorted(block for state in found.values() for block in state["blocks"])
        if held != sorted(blocks):
            raise UserError(f"{self.folder}: the files tops-*.json do not hold each of {len(blocks)} blocks once; {self.remedy}.")
        self.settled = self.highest.settled() if self.alone else None

    def merged(self, start: int, stop: int) -> Tensor:
        """The tops of captions start..stop-1 of all processes: int32 [stop - start, k], highest first, -1 for none."""
        if self.settled is not None:
            return self.settled[1][start:stop].cpu().contiguous()
        parts = [self._read(file, start, stop) for file in self.files]
        scores, numbers = in_order(torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts], dim=1))
        return numbers[:, : self.k].masked_fill(scores[:, : self.k] == -torch.inf, -1)

    def _listed(self) -> dict[int, dict[str, Any]]:
        """What each file tops-N.json says, by N."""
        found = {}
        for path in sorted(self.folder.glob("tops-*.json")):
            state = read_json_object(path, self.remedy)
            number, blocks = path.stem.removeprefix("tops-"), state.get("blocks")
            whole = isinstance(blocks, list) and all(type(block) is int for block in blocks)
            if not whole or state.get("file") not in (f"tops-{number}-a.npy", f"tops-{number}-b.npy") or not number.isdecimal():
                raise UserError(f"{path} names no file and blocks; {self.remedy}.")
            found[int(number)] = state
        return found

    def _read(self, file: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Scores float32 and numbers int32 [stop - start, k] of a file, on the CPU."""
        rows = torch.from_numpy(map_npy(self.folder / file, np.int32, (self.rows, 2, self.k), self.remedy)[start:stop])
        return rows[:, 0].contiguous().view(torch.float32), rows[:, 1]
