"""Block-wise search against the whole score matrix, sorted."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from tagsds.kernels import choice, select
from tagsds.kernels.select import Highest
from tagsds.scoring.search import Stored, dot, search


def vectors_of(n: int, width: int, seed: int) -> torch.Tensor:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


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


@pytest.fixture(params=["compiled", "torch"])
def kernel(request):
    """Both ways to keep the highest scores."""
    if request.param == "compiled" and not choice.compiled():
        pytest.skip(f"no C++ kernels here: {choice.why_not_compiled()}")
    with choice.forced({"select": "reference"} if request.param == "torch" else {}):
        yield


@pytest.mark.parametrize("block", [(1, 19), (5, 7), (23, 88), (100, 100)])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_equals_brute_force(sides, block, k, kernel):
    images_at, captions_at, images, captions, owner = sides
    whole = images.double() @ captions.double().T
    whole[torch.arange(23)[:, None] == owner[None]] = -torch.inf
    for queries, keys, scores in ((images_at, captions_at, whole), (captions_at, images_at, whole.T)):
        total = len(scores)
        blocks = [(start, min(start + block[0], total)) for start in range(0, total, block[0])]
        of_keys = Highest.of(scores.shape[1], k, torch.device("cpu"))
        found = np.concatenate([search(dot, queries, keys, a, b, k, block[1], of_keys) for a, b in blocks])
        assert found.dtype == np.int32 and found.shape == (total, k)
        assert found.tolist() == scores.sort(dim=1, descending=True).indices[:, :k].tolist()
        assert of_keys.settled()[1].tolist() == scores.T.sort(dim=1, descending=True).indices[:, :k].tolist()
        alone = np.concatenate([search(dot, queries, keys, a, b, k, block[1]) for a, b in blocks])
        assert alone.tolist() == found.tolist()


def test_a_row_with_too_few_ends_in_minus_one(sides):
    images_at, captions_at, _, _, owner = sides
    found = search(dot, images_at, captions_at, 0, 23, 90, 10)
    for image, row in enumerate(found):
        others = (owner != image).nonzero().flatten().tolist()
        assert sorted(row[: len(others)].tolist()) == others
        assert (row[len(others) :] == -1).all()


def test_running_tops_by_hand(kernel):
    rows, columns = Highest.of(1, 2, torch.device("cpu")), Highest.of(3, 2, torch.device("cpu"))
    block, owners = torch.tensor([[0.1, 0.9, 0.3]]), (torch.tensor([4]), torch.tensor([5, 4, 6]))
    rows.offer(block, owners, 0)
    columns.offer(block, owners, 7, by_column=True)
    assert rows.settled()[1].tolist() == [[2, 0]]
    assert columns.settled()[1].tolist() == [[7, -1], [-1, -1], [7, -1]]
    rows.offer(torch.tensor([[0.2, torch.nan, -torch.inf]]), (torch.tensor([4]), torch.tensor([1, 1, 1])), 3)
    columns.offer(torch.tensor([[0.0, 0.0, 0.5]]), (torch.tensor([1]), torch.tensor([5, 4, 6])), 8, by_column=True)
    assert rows.settled()[1].tolist() == [[2, 3]]
    assert columns.settled()[1].tolist() == [[7, 8], [8, -1], [8, 7]]
    torch.testing.assert_close(columns.settled()[0], torch.tensor([[0.1, 0.0], [0.0, -torch.inf], [0.5, 0.3]]), rtol=0, atol=0)


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "equal", "few values"])
@pytest.mark.parametrize("by_column", [False, True])
def test_many_scores_in_any_order(order, by_column, kernel):
    """Rows that are cut back many times, against a sort; of equal scores the compiled kernel keeps those that came first."""
    scores = torch.randn(40, 3000, generator=torch.Generator().manual_seed(3))
    if order == "equal":
        scores.fill_(0.25)
    elif order == "few values":
        scores = scores.round()
    elif order != "random":
        scores = scores.sort(dim=1, descending=order == "descending").values
    owner, owners = torch.arange(40), torch.arange(3000) % 50
    tops = Highest.of(40, 150, torch.device("cpu"))
    for first in range(0, 3000, 333):
        part, own = scores[:, first : first + 333], owners[first : first + 333]
        if by_column:
            tops.offer(part.T.contiguous(), (own, owner), first, by_column=True)
        else:
            tops.offer(part.contiguous(), (owner, own), first)
    masked = scores.masked_fill(owner[:, None] == owners[None], -torch.inf)
    expected = masked.sort(dim=1, descending=True, stable=True)
    found, numbers = tops.settled()
    assert torch.equal(found, expected.values[:, :150]) and torch.equal(masked.gather(1, numbers.long()), found)
    assert all(len(set(row)) == 150 for row in numbers.tolist())
    if choice.select(torch.device("cpu")) == "cpu":
        assert torch.equal(numbers.long(), expected.indices[:, :150])


def test_without_the_kernel_a_row_needs_no_spare_places():
    with choice.forced({"select": "reference"}):
        assert select.room_for(100, torch.device("cpu")) == 100


def test_memory_does_not_grow_with_the_keys(tmp_path):
    """Vectors come through numpy, which tracemalloc sees: the peak of a search is a block's, for 16 times as many keys too."""
    peaks = []
    for number, n in enumerate((2_000, 32_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        keys = stored(folder, "k", vectors_of(n, 16, 0), torch.zeros(n, dtype=torch.int64), [n // 2])
        queries = stored(folder, "q", vectors_of(50, 16, 1), torch.ones(50, dtype=torch.int64), [])
        tracemalloc.start()
        search(dot, queries, keys, 0, 50, 10, 1_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
