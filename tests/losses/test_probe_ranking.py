"""The loss of the probe, worked by hand."""

import math

import pytest
import torch

from tagsds.losses.cascade import probe_ranking


def soft(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_two_rows_by_hand():
    """K = 2 hard, N = 2 others; the second row's first other stands for 5 candidates, its second for none."""
    hard = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    others = torch.tensor([[0.5, -0.5], [1.0, 9.0]])
    weight = torch.tensor([[1.0, 2.0], [5.0, 0.0]])
    first = soft(0.5 - 1) + soft(0.5 - 0) + 2 * (soft(-0.5 - 1) + soft(-0.5 - 0))
    second = 5 * (soft(1.0 - 2) + soft(1.0 + 1))
    assert float(probe_ranking(hard, others, weight)) == pytest.approx((first + second) / (2 * 8), rel=1e-6)


def test_a_level_probe_costs_log_two():
    assert float(probe_ranking(torch.zeros(3, 4), torch.zeros(3, 5), torch.rand(3, 5))) == pytest.approx(math.log(2), rel=1e-6)


def test_gradient_by_hand():
    """d / d other = sigmoid(other - hard), d / d hard its negative."""
    hard, other = torch.tensor([[0.3]], requires_grad=True), torch.tensor([[1.0]], requires_grad=True)
    probe_ranking(hard, other, torch.ones(1, 1)).backward()
    expected = 1 / (1 + math.exp(-0.7))
    assert float(other.grad) == pytest.approx(expected, rel=1e-6)
    assert float(hard.grad) == pytest.approx(-expected, rel=1e-6)


@pytest.mark.parametrize("weight", [torch.zeros(2, 0), torch.zeros(2, 3)])
def test_no_other_gives_zero_on_the_graph(weight):
    hard = torch.randn(2, 4, requires_grad=True)
    loss = probe_ranking(hard, torch.randn(weight.shape), weight)
    loss.backward()
    assert float(loss) == 0 and not hard.grad.any()
