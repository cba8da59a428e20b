"""Block-wise search against the whole score matrix, sorted."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from tagsds.models.matchers import Encoded
from tagsds.scoring.search import Best, Stored, choose_backend, search


def vectors_of(n: int, width: int, seed: int) -> torch.Tensor:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def compare(a: Encoded, b: Encoded) -> torch.Tensor:
    return a.vectors[:, 0] @ b.vectors[:, 0].T


def stored(folder: Path, name: str, vectors: torch.Tensor, owners: torch.Tensor, cuts: list[int]) -> Stored:
    files = []
    for number, part in enumerate(np.split(vectors.numpy(), cuts)):
        files.append(folder / f"{name}{number}.npy")
        np.save(files[-1], part)
    return Stored(files, owners, torch.device("cpu"))


@pytest.fixture
def sides(tmp_path):
    """23 images with 1 to 7 captions each, in files of uneven length."""
    counts = torch.tensor([1, 7, 5, 3, 2] * 4 + [5, 5, 6])
    owner = torch.repeat_interleave(torch.arange(23), counts)
    images, captions = vectors_of(23, 6, 0), vectors_of(len(owner), 6, 1)
    images_at = stored(tmp_path, "images", images, torch.arange(23), [4, 5, 19])
    return images_at, stored(tmp_path, "captions", captions, owner, [13, 30]), images, captions, owner


@pytest.mark.parametrize("block", [(1, 1), (5, 7), (23, 88), (100, 100)])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_equals_brute_force(sides, block, k):
    images_at, captions_at, images, captions, owner = sides
    whole = images.double() @ captions.double().T
    whole[torch.arange(23)[:, None] == owner[None]] = -torch.inf
    for queries, keys, scores in ((images_at, captions_at, whole), (captions_at, images_at, whole.T)):
        total = len(scores)
        blocks = [(start, min(start + block[0], total)) for start in range(0, total, block[0])]
        found = np.concatenate([search(compare, queries, keys, a, b, k, block[1]) for a, b in blocks])
        assert found.dtype == np.int32 and found.shape == (total, k)
        assert found.tolist() == scores.sort(dim=1, descending=True).indices[:, :k].tolist()


def test_a_row_with_too_few_ends_in_minus_one(sides):
    images_at, captions_at, _, _, owner = sides
    found = search(compare, images_at, captions_at, 0, 23, 90, 10)
    for image, row in enumerate(found):
        others = (owner != image).nonzero().flatten().tolist()
        assert sorted(row[: len(others)].tolist()) == others
        assert (row[len(others) :] == -1).all()


def test_running_best_by_hand():
    best = Best.of(1, 2, torch.device("cpu"))
    best.add(torch.tensor([[0.1, -torch.inf, 0.3]]), torch.tensor([0, 1, 2]))
    assert best.numbers.tolist() == [[2, 0]]
    best.add(torch.tensor([[0.2]]), torch.tensor([3]))
    assert best.numbers.tolist() == [[2, 3]]


def test_memory_does_not_grow_with_the_keys(tmp_path):
    """Vectors come through numpy, which tracemalloc sees: the peak of a search is a block's, for 16 times as many keys too."""
    peaks = []
    for number, n in enumerate((2_000, 32_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        keys = stored(folder, "k", vectors_of(n, 16, 0), torch.zeros(n, dtype=torch.int64), [n // 2])
        queries = stored(folder, "q", vectors_of(50, 16, 1), torch.ones(50, dtype=torch.int64), [])
        tracemalloc.start()
        search(compare, queries, keys, 0, 50, 10, 1_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_backend_is_torch_without_faiss(sides, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    assert choose_backend("auto", compare, sides[0], sides[1], 3, (8, 8)) == ("torch", "faiss is not installed")
    assert choose_backend("faiss", compare, sides[0], sides[1], 3, (8, 8))[0] == "faiss"


def test_faiss_finds_the_same(sides):
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'tagsds[faiss]'")
    images_at, captions_at, *_ = sides
    for queries, keys, n in ((images_at, captions_at, 23), (captions_at, images_at, 88)):
        ours, theirs = (search(compare, queries, keys, 0, n, 9, 10, backend) for backend in ("torch", "faiss"))
        assert ours.tolist() == theirs.tolist()
    assert choose_backend("auto", compare, images_at, captions_at, 3, (8, 8))[0] in ("torch", "faiss")
