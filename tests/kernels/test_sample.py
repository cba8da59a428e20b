"""The reference of sampling word pieces: its draws follow softmax, are independent, and never take a special piece."""

from __future__ import annotations

import math

import torch

from tagsds.kernels.sample import BLOCK, gumbel, sample_pieces
from tests.kernels.checks import chi_square, vocabulary


def probabilities(states, weight, bias, allowed, tau):
    logits = (states.double() @ weight.double().T + bias.double()) / tau
    return logits.masked_fill(~allowed, -torch.inf).softmax(dim=1)


def test_the_draws_follow_softmax_over_several_blocks():
    for tau, pieces in ((1.5, 3 * BLOCK + 17), (0.5, BLOCK), (2.0, 40)):
        states, weight, bias, allowed = vocabulary("cpu", 1, pieces, 32)
        drawn = sample_pieces(states.expand(4000, -1), weight, bias, allowed, tau, 50, seed=31 + pieces)
        assert allowed[drawn].all()
        statistic, freedom = chi_square(drawn, probabilities(states, weight, bias, allowed, tau)[0])
        assert freedom >= 25
        assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom), (tau, pieces)


def test_draws_of_a_position_and_of_neighbours_are_independent():
    """Two independent draws agree with probability sum_v p_v^2; of neighbouring draws and of neighbouring rows alike."""
    states, weight, bias, allowed = vocabulary("cpu", 1, 300, 16)
    agree = float(probabilities(states, weight, bias, allowed, 1.5)[0].square().sum())
    drawn = sample_pieces(states.expand(5000, -1), weight, bias, allowed, 1.5, 20, seed=8)
    for equal in (drawn[:, 1:] == drawn[:, :-1], drawn[1:] == drawn[:-1]):
        spread = math.sqrt(agree * (1 - agree) / equal.numel())
        assert abs(float(equal.double().mean()) - agree) < 5 * spread


def test_each_row_by_its_own_softmax_and_the_seed_decides():
    states, weight, bias, allowed = vocabulary("cpu", 6, 200, 16)
    drawn = sample_pieces(states.repeat_interleave(2000, 0), weight, bias, allowed, 1.0, 10, seed=1)
    for row, probability in zip(drawn.view(6, -1), probabilities(states, weight, bias, allowed, 1.0)):
        statistic, freedom = chi_square(row, probability)
        assert abs(statistic - freedom) < 4.5 * math.sqrt(2 * freedom)
    again = sample_pieces(states, weight, bias, allowed, 1.0, 10, seed=1)
    assert torch.equal(again, sample_pieces(states, weight, bias, allowed, 1.0, 10, seed=1))
    assert not torch.equal(again, sample_pieces(states, weight, bias, allowed, 1.0, 10, seed=2))


def test_a_certain_piece_and_a_block_without_any():
    states, weight, bias, allowed = vocabulary("cpu", 3, 3 * BLOCK, 16)
    allowed[:BLOCK] = False
    bias[2 * BLOCK + 5] = 1e4
    allowed[2 * BLOCK + 5] = True
    assert (sample_pieces(states, weight, bias, allowed, 1.0, 7, seed=1) == 2 * BLOCK + 5).all()


def test_gumbel_noise_has_its_mean_and_spread_and_no_infinite_number():
    ends = gumbel(torch.tensor([0, 1, 2**31, 2**32 - 1]))
    assert ends.isfinite().all() and (ends.diff() < 0).all()
    bits = torch.arange(0, 2**32, 4099)
    noise = gumbel(bits).double()
    assert abs(float(noise.mean()) - 0.5772156649) < 1e-3  # Euler's constant
    assert abs(float(noise.var()) - math.pi**2 / 6) < 2e-2
    exact = -torch.log(-torch.log1p(-(bits.double() + 0.5) / 2**32))
    assert (noise - exact).abs().quantile(0.999) < 1e-5
