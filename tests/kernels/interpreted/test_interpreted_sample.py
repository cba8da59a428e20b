"""Word pieces drawn without a table of logits, on CPU tensors in Triton's interpreter: the draws are the reference's."""

from __future__ import annotations

import pytest
import torch

from tagsds.kernels import sample as reference
from tagsds.kernels.triton.sample import sample_pieces
from tests.kernels.checks import chi_square, vocabulary


@pytest.mark.parametrize(
    ("count", "pieces", "width", "draws"), [(1, 1, 16, 1), (3, 40, 24, 3), (18, 300, 32, 5), (35, 129, 40, 2), (2, 700, 100, 4)]
)
def test_the_draws_are_those_of_the_reference(count, pieces, width, draws):
    states, weight, bias, allowed = vocabulary("cpu", count, pieces, width)
    drawn = sample_pieces(states, weight, bias, allowed, 1.5, draws, 4_321)
    assert drawn.dtype == torch.int64 and drawn.shape == (count, draws)
    assert torch.equal(drawn, reference.sample_pieces(states, weight, bias, allowed, 1.5, draws, 4_321))
    assert allowed[drawn].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_rounded_numbers_and_sums_in_float32(dtype):
    states, weight, bias, allowed = vocabulary("cpu", 20, 200, 32)
    drawn = sample_pieces(states.to(dtype), weight, bias, allowed, 2.0, 4, 9)
    assert torch.equal(drawn, reference.sample_pieces(states.to(dtype), weight.to(dtype), bias, allowed, 2.0, 4, 9))


def test_a_whole_block_left_out_and_one_piece_allowed():
    states, weight, bias, allowed = vocabulary("cpu", 4, 300, 16)
    allowed[:] = False
    allowed[290] = True
    assert (sample_pieces(states, weight, bias, allowed, 1.0, 3, 5) == 290).all()


def test_the_draws_follow_softmax():
    states, weight, bias, allowed = vocabulary("cpu", 1, 260, 16)
    probability = torch.softmax(((states @ weight.T + bias) / 1.5).masked_fill(~allowed, -torch.inf)[0], dim=0)
    drawn = sample_pieces(states.expand(64, -1), weight, bias, allowed, 1.5, 32, 2_024)
    statistic, freedom = chi_square(drawn, probability)
    assert freedom > 20
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_nothing_to_draw():
    states, weight, bias, allowed = vocabulary("cpu", 2, 30, 16)
    assert sample_pieces(states[:0], weight, bias, allowed, 1.0, 3, 5).shape == (0, 3)
