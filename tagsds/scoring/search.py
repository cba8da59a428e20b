"""Exact search for the highest similarities, in blocks: queries x keys, a running top k, own items left out.

Shapes: q queries of a block, n keys of a block, E width. Memory of a search: q E + n E + q n + 3 q k numbers, whatever the corpus
holds. A search that serves the keys as well computes each product once for both directions; for that the tops of all N keys stay
in memory, N times `bytes_of_tops`: with 400 images of each of COCO's 566,435 captions, 2.5 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.errors import UserError, first_line
from tagsds.kernels.select import Highest, dot_products, room_for
from tagsds.models.matchers import Encoded, Matcher

Compare = Callable[[Encoded, Encoded], Tensor]


class Store(Protocol):
    """One side of the corpus in the joint space. `owners` int64 [N]: the image of each item, by which own ones are known."""

    owners: Tensor

    def block(self, start: int, stop: int) -> Encoded: ...


class Stored:
    """Vectors in files [n, E] float32, one behind the other, mapped as they are needed: a corpus has more of them than a process
    may hold open."""

    def __init__(self, files: Sequence[Path], owners: Tensor, device: torch.device) -> None:
        self.files = files
        self.starts = np.cumsum([0, *(len(open_vectors(file)) for file in files)])
        self.owners, self.device = owners, device

    def block(self, start: int, stop: int) -> Encoded:
        pieces = []
        first_file = int(np.searchsorted(self.starts, start, side="right")) - 1
        for number in range(first_file, len(self.files)):
            first = int(self.starts[number])
            if first >= stop:
                break
            part = open_vectors(self.files[number])
            pieces.append(np.asarray(part[max(start - first, 0) : stop - first]))
        vectors = torch.from_numpy(np.concatenate(pieces)).to(self.device)
        return Encoded(vectors[:, None], torch.ones(len(vectors), dtype=torch.int64, device=self.device))


def open_vectors(path: Path) -> np.ndarray:
    """Vectors of a killed run's part, mapped. UserError for a damaged file."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is a Python literal, and fails in any way
        raise UserError(f"{path} is no whole npy array ({first_line(error)}); remove {path.parent} and mine again.") from error


class Live:
    """A bank in memory, encoded by the matcher with its current weights; the last blocks are kept."""

    def __init__(self, model: Matcher, bank: Bank, of_images: bool, kept: int = 8) -> None:
        self.owners = torch.arange(bank.num_images, device=bank.device) if of_images else bank.image_of_caption

        def encode(start: int, stop: int) -> Encoded:
            rows = torch.arange(start, stop, device=bank.device)
            if of_images:
                found = model.encode_images(bank.image_table(rows))
            else:
                found = model.encode_captions(bank.text_table(rows))
            return Encoded(found.vectors, found.lengths)

        self.block = lru_cache(maxsize=kept)(encode)


def dot(queries: Encoded, keys: Encoded) -> Tensor:
    """Similarities of sides with one vector an item: float32 [q, n]."""
    return dot_products(queries.vectors[:, 0], keys.vectors[:, 0])


@torch.no_grad()
def search(
    compare: Compare, queries: Store, keys: Store, start: int, stop: int, k: int, block_keys: int, of_keys: Highest | None = None
) -> np.ndarray:
    """The k keys of highest similarity of queries start..stop-1, of other owners only: int32 [stop - start, k], highest first, -1
    for none.

    compare    (queries, keys) -> float32 [q, n]
    of_keys    running tops of all keys, which take these queries in from the same products; None: only queries are served
    """
    encoded = queries.block(start, stop)
    owners = queries.owners[start:stop]
    best = Highest.of(stop - start, k, encoded.vectors.device)
    total = len(keys.owners)
    for first in range(0, total, block_keys):
        last = min(first + block_keys, total)
        own = owners, keys.owners[first:last]
        scores = compare(encoded, keys.block(first, last))
        best.offer(scores, own, first)
        if of_keys is not None:
            of_keys.part(first, last).offer(scores, own, start, by_column=True)
    return best.settled()[1].cpu().numpy()


def bytes_of_tops(rows: int, k: int, device: torch.device) -> int:
    """Memory of the running k highest of so many rows: a score and a number a place, and two words a row."""
    return rows * (room_for(k, device) + 1) * 8
