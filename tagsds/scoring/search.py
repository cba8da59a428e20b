"""Exact search for the highest similarities, in blocks: queries x keys, a running top k, own items left out.

Shapes: q queries of a block, n keys of a block, E width. Memory of a search: q E + n E + q n + 3 q (k + n) numbers, whatever the
corpus holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tagsds.data.bank import Bank
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
        self.starts = np.cumsum([0, *(len(np.load(file, mmap_mode="r", allow_pickle=False)) for file in files)])
        self.owners, self.device = owners, device

    def block(self, start: int, stop: int) -> Encoded:
        pieces = []
        first_file = int(np.searchsorted(self.starts, start, side="right")) - 1
        for number in range(first_file, len(self.files)):
            first = int(self.starts[number])
            if first >= stop:
                break
            part = np.load(self.files[number], mmap_mode="r", allow_pickle=False)
            pieces.append(np.asarray(part[max(start - first, 0) : stop - first]))
        vectors = torch.from_numpy(np.concatenate(pieces)).to(self.device)
        return Encoded(vectors[:, None], torch.ones(len(vectors), dtype=torch.int64, device=self.device))


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


@dataclass
class Best:
    """The k best keys so far of q queries: scores float32 [q, k], highest first, and their numbers, -1 for none."""

    scores: Tensor
    numbers: Tensor

    @staticmethod
    def of(queries: int, k: int, device: torch.device) -> Best:
        return Best(
            torch.full((queries, k), -torch.inf, device=device), torch.full((queries, k), -1, dtype=torch.int64, device=device)
        )

    def add(self, scores: Tensor, numbers: Tensor) -> None:
        """Further keys: scores [q, n] with -inf where a key does not count, numbers int64 [q, n] or [n]."""
        k = self.scores.shape[1]
        if scores.shape[1] > k:
            scores, at = scores.topk(k, dim=1)
            numbers = numbers[at] if numbers.ndim == 1 else numbers.gather(1, at)
        every = torch.cat([self.scores, scores], dim=1)
        numbers = torch.cat([self.numbers, numbers.expand_as(scores)], dim=1)
        self.scores, at = every.topk(k, dim=1)
        self.numbers = torch.where(self.scores > -torch.inf, numbers.gather(1, at), -1)


@torch.no_grad()
def search(
    compare: Compare, queries: Store, keys: Store, start: int, stop: int, k: int, block_keys: int, backend: str = "torch"
) -> np.ndarray:
    """The k keys of highest similarity of queries start..stop-1, of other owners only: int32 [stop - start, k], highest first.

    compare    (queries, keys) -> [q, n]
    backend    torch, or faiss for one-vector sides on a CPU (the same scores; ties may come in another order)
    """
    encoded = queries.block(start, stop)
    owners = queries.owners[start:stop]
    best = Best.of(stop - start, k, encoded.vectors.device)
    total = len(keys.owners)
    for first in range(0, total, block_keys):
        last = min(first + block_keys, total)
        block, theirs = keys.block(first, last), keys.owners[first:last]
        if backend == "faiss":
            best.add(*_faiss_block(encoded, block, owners, theirs, k, first))
        else:
            own = owners[:, None] == theirs[None, :]
            scores = compare(encoded, block).masked_fill_(own, -torch.inf)
            best.add(scores, torch.arange(first, last, device=scores.device))
    return best.numbers.to("cpu", torch.int32).numpy()


def _faiss_block(queries: Encoded, keys: Encoded, owners: Tensor, theirs: Tensor, k: int, first: int) -> tuple[Tensor, Tensor]:
    import faiss

    spare = int(torch.bincount(theirs).max())  # own keys that may take the first places
    wanted = min(k + spare, len(keys))
    scores, at = faiss.knn(queries.vectors[:, 0].numpy(), keys.vectors[:, 0].numpy(), wanted, metric=faiss.METRIC_INNER_PRODUCT)
    numbers = torch.from_numpy(at)
    own = owners[:, None] == theirs[numbers]
    return torch.from_numpy(scores).masked_fill_(own, -torch.inf), numbers + first


def choose_backend(wanted: str, compare: Compare, queries: Store, keys: Store, k: int, sizes: tuple[int, int]) -> tuple[str, str]:
    """The backend to search with and the reason: for `auto` on a CPU with faiss installed, the faster one on a first block."""
    if wanted != "auto":
        return wanted, "as asked"
    try:
        import faiss  # noqa: F401
    except ImportError:
        return "torch", "faiss is not installed"
    if queries.block(0, 1).vectors.is_cuda:
        return "torch", "on a GPU"
    seconds = {}
    stop, limited = min(sizes[0], len(queries.owners)), _FirstBlock(keys, sizes[1])
    for backend in ("torch", "faiss"):
        begin = time.perf_counter()
        search(compare, queries, limited, 0, stop, k, sizes[1], backend)
        seconds[backend] = time.perf_counter() - begin
    faster = min(seconds, key=lambda name: seconds[name])
    return faster, ", ".join(f"{name} {value:.2f} s a block" for name, value in seconds.items())


class _FirstBlock:
    def __init__(self, store: Store, size: int) -> None:
        self.owners, self.block = store.owners[:size], store.block
