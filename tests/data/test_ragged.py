"""The ragged container on hand-made rows, empty ones among them."""

import pytest
import torch

from tagsds.data.ragged import Ragged, offsets_of, positions_of


def rows_of(ragged: Ragged) -> list[list]:
    return [ragged[row].tolist() for row in range(len(ragged))]


@pytest.fixture
def four() -> Ragged:
    """[1, 2], [], [3], [4, 5, 6]."""
    return Ragged(torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([2, 0, 1, 3]))


def test_rows_and_offsets(four):
    assert len(four) == 4
    assert four.offsets.tolist() == [0, 2, 2, 3, 6]
    assert rows_of(four) == [[1, 2], [], [3], [4, 5, 6]]


def test_offsets_of():
    assert offsets_of(torch.tensor([2, 0, 1, 3])).tolist() == [0, 2, 2, 3, 6]
    assert offsets_of(torch.tensor([], dtype=torch.int64)).tolist() == [0]


def test_positions_of():
    assert positions_of(torch.tensor([7, 100, 3]), torch.tensor([2, 1, 3])).tolist() == [7, 8, 100, 3, 4, 5]
    assert positions_of(torch.tensor([9, 7, 5, 3]), torch.tensor([0, 2, 0, 1])).tolist() == [7, 8, 3]
    assert positions_of(torch.tensor([4, 5]), torch.tensor([0, 0])).tolist() == []
    nothing = torch.empty(0, dtype=torch.int64)
    assert positions_of(nothing, nothing).tolist() == []


def test_select_repeats_and_reorders(four):
    picked = four.select(torch.tensor([3, 1, 0, 3]))
    assert rows_of(picked) == [[4, 5, 6], [], [1, 2], [4, 5, 6]]
    assert picked.values.tolist() == [4, 5, 6, 1, 2, 4, 5, 6]


def test_select_nothing(four):
    picked = four.select(torch.empty(0, dtype=torch.int64))
    assert len(picked) == 0 and picked.values.numel() == 0
    assert rows_of(four.select(torch.tensor([1, 1]))) == [[], []]


def test_select_keeps_trailing_dimensions():
    table = Ragged(torch.arange(8).view(4, 2), torch.tensor([1, 3]))
    assert table.select(torch.tensor([1]))[0].tolist() == [[2, 3], [4, 5], [6, 7]]


def test_pad(four):
    assert four.pad(-1).tolist() == [[1, 2, -1], [-1, -1, -1], [3, -1, -1], [4, 5, 6]]
    assert four.pad(0, length=4).tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0], [4, 5, 6, 0]]


def test_pad_of_vectors_keeps_the_dtype():
    table = Ragged(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float16), torch.tensor([0, 2]))
    padded = table.pad(9)
    assert padded.dtype == torch.float16
    assert padded.tolist() == [[[9, 9], [9, 9]], [[1, 2], [3, 4]]]


def test_from_padded_is_the_inverse_of_pad(four):
    back = Ragged.from_padded(four.pad(-1, length=5), four.lengths)
    assert rows_of(back) == rows_of(four)
    # what lies behind a row's length is dropped, whatever it is
    padded = torch.tensor([[1, 2, 77], [88, 99, 66]])
    assert rows_of(Ragged.from_padded(padded, torch.tensor([2, 0]))) == [[1, 2], []]


def test_from_rows_and_cat(four):
    rows = [torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([3]), torch.tensor([4, 5, 6])]
    assert rows_of(Ragged.from_rows(rows)) == rows_of(four)
    twice = Ragged.cat([four, four.select(torch.tensor([2]))])
    assert rows_of(twice) == [*rows_of(four), [3]]


def test_to_changes_the_values_dtype_only(four):
    moved = four.to("cpu", torch.float64)
    assert moved.values.dtype == torch.float64 and moved.lengths.dtype == torch.int64


def test_gradient_of_repeated_rows_adds_up():
    values = torch.arange(3.0, requires_grad=True)
    Ragged(values, torch.tensor([1, 2])).select(torch.tensor([1, 0, 1])).values.sum().backward()
    assert values.grad.tolist() == [1, 2, 2]
