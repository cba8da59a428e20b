"""The attention of SCAN and BFAN on numbers worked by hand: two regions, two words."""

import math

import pytest
import torch

from tagsds.models.matchers.attention import attend, cosine, focus, log_sum_exp, mean, unit

REAL = torch.tensor([True, True])
# words w1 = (1, 0), w2 = (0, 1); regions v1 = (0.6, 0.8), v2 = (-1, 0)
WORDS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
REGIONS = torch.tensor([[0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
DOTS = torch.tensor([[0.6, -1.0], [0.8, 0.0]], dtype=torch.float64)  # [word, region]


def test_attend_by_hand():
    # leaky: (0.6, -0.1), (0.8, 0). Over the words, region 1 has length 1, region 2 has length 0.1: (0.6, -1), (0.8, 0)
    got = attend(DOTS, REAL, sharpness=2.0)
    first = 1 / (1 + math.exp(2 * (-1 - 0.6)))  # softmax of (1.2, -2)
    second = 1 / (1 + math.exp(2 * (0 - 0.8)))  # softmax of (1.6, 0)
    wanted = torch.tensor([[first, 1 - first], [second, 1 - second]], dtype=torch.float64)
    torch.testing.assert_close(got, wanted, atol=1e-14, rtol=0)
    assert round(first, 4) == 0.9608 and round(second, 4) == 0.8320


def test_cosine_by_hand():
    # w1 attends half and half: (0.3 - 0.5, 0.4) = (-0.2, 0.4), cosine -0.2 / sqrt(0.2); w2 to v1 alone: cosine 0.8
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    got = cosine(DOTS, weights, REGIONS @ REGIONS.T)
    torch.testing.assert_close(got, torch.tensor([-0.2 / math.sqrt(0.2), 0.8], dtype=torch.float64), atol=1e-14, rtol=0)
    # twice the weights, the same cosine: why `focus` need not renormalise
    torch.testing.assert_close(cosine(DOTS, 2 * weights, REGIONS @ REGIONS.T), got, atol=1e-14, rtol=0)


def test_focus_by_hand():
    # (0.5, 0.3, 0.2): equal votes: F = 3 x - 1 = (0.5, -0.1, -0.4)
    weights = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    real = torch.tensor([True, True, True])
    assert focus(weights, real, "equal").tolist() == [[0.5, 0.0, 0.0]]
    # (0.64, 0.35, 0.01): equal keeps both (0.92, 0.05, -0.97); by sqrt, (0.8, 0.5916, 0.1), the threshold is
    # (0.512 + 0.2071 + 0.001) / 1.4916 = 0.4828, so only the first stays
    weights = torch.tensor([[0.64, 0.35, 0.01]], dtype=torch.float64)
    assert focus(weights, real, "equal").tolist() == [[0.64, 0.35, 0.0]]
    assert focus(weights, real, "prob").tolist() == [[0.64, 0.0, 0.0]]


@pytest.mark.parametrize("focal", ["equal", "prob"])
def test_padding_has_no_vote(focal):
    # two real fragments (0.6, 0.4): the second lies below their mean 0.5, but above 1/3, the mean with a padding slot
    weights = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    assert focus(weights, torch.tensor([True, True, False]), focal).tolist() == [[0.6, 0.0, 0.0]]


@pytest.mark.parametrize("focal", ["equal", "prob"])
def test_where_nothing_stands_out_all_is_kept(focal):
    thirds = torch.full((1, 3), 1 / 3) + torch.tensor([[0.0, 1e-7, -1e-7]])  # rounding is no relevance
    assert torch.equal(focus(thirds, torch.ones(3, dtype=torch.bool), focal), thirds)
    assert focus(torch.tensor([[0.5, 0.5]]), REAL, focal).tolist() == [[0.5, 0.5]]
    assert focus(torch.tensor([[1.0, 0.0]]), torch.tensor([True, False]), focal).tolist() == [[1.0, 0.0]]


def test_pooling_by_hand():
    x, real = torch.tensor([[0.5, -0.3, 9.0]], dtype=torch.float64), torch.tensor([[True, True, False]])
    assert math.isclose(mean(x, real).item(), 0.1)
    wanted = math.log(math.exp(6 * 0.5) + math.exp(6 * -0.3)) / 6
    assert math.isclose(log_sum_exp(x, real, 6.0).item(), wanted, rel_tol=1e-14)
    assert mean(x, torch.zeros_like(real)).item() == 0


def test_padding_takes_no_weight():
    padded = torch.nn.functional.pad(DOTS, (0, 1, 0, 1))  # a third region and a third word, zero
    got = attend(padded, torch.tensor([True, True, False]), 2.0)
    assert (got[:, 2] == 0).all()
    torch.testing.assert_close(got[:2, :2], attend(DOTS, REAL, 2.0), atol=1e-14, rtol=0)


@pytest.mark.parametrize("focal", ["equal", "prob"])
def test_nothing_real_gives_zeros_and_finite_gradients(focal):
    dots = torch.zeros(1, 2, 2, requires_grad=True)
    gram = torch.zeros(1, 2, 2, requires_grad=True)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    x = cosine(dots, focus(attend(dots, nothing, 20.0), nothing, focal), gram)
    assert (x == 0).all()
    (mean(x, nothing) + log_sum_exp(x, torch.ones_like(nothing), 6.0)).sum().backward()
    assert dots.grad.isfinite().all() and gram.grad.isfinite().all()


def test_opposite_regions_cancel_without_nan():
    # the attended vector of equal weights on v and -v is 0: cosine 0, not 0 / 0
    dots = torch.tensor([[0.5, -0.5]], requires_grad=True)
    gram = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    x = cosine(dots, torch.tensor([[0.5, 0.5]]), gram)
    x.sum().backward()
    assert x.item() == 0 and dots.grad.isfinite().all() and gram.grad.isfinite().all()


def test_broadcast_over_pairs():
    """Images x captions at once, with Gram matrices once per image, equals pair by pair."""
    generator = torch.Generator().manual_seed(3)
    v, w = (unit(torch.randn(*shape, 4, generator=generator, dtype=torch.float64)) for shape in ((3, 5), (2, 6)))
    dots = torch.einsum("ire,cle->iclr", v, w)
    real = torch.ones(3, 1, 5, dtype=torch.bool)
    got = cosine(dots, attend(dots, real, 9.0), (v @ v.mT)[:, None])
    for i in range(3):
        for c in range(2):
            one = attend(dots[i, c], real[i, 0], 9.0)
            attended = one @ v[i]
            wanted = torch.nn.functional.cosine_similarity(w[c], attended, dim=-1)
            torch.testing.assert_close(got[i, c], wanted, atol=1e-12, rtol=0)
