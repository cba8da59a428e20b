"""Word discrimination against numbers worked by hand."""

import math

import pytest
import torch

from tagsds.losses.discrimination import discrimination

LN2, LN3 = math.log(2), math.log(3)


def test_mean_over_tokens_by_hand():
    # p(original) = softmax of [0, 0], [ln 2, 0], [0, ln 2] in column 1: 1/2, 1/3, 2/3
    logits = torch.tensor([[0.0, 0.0], [LN2, 0.0], [0.0, LN2]], requires_grad=True)
    replaced = torch.tensor([True, False, True])
    # cross entropies: -ln(1 - 1/2) = ln 2; -ln 1/3 = ln 3; -ln(1 - 2/3) = ln 3; divided by three tokens, not by 2.11
    loss = discrimination(logits, replaced)
    assert loss.item() == pytest.approx((1.0 * LN2 + 0.11 * LN3 + 1.0 * LN3) / 3, abs=1e-6)
    loss.backward()  # w (p(original) - is original) / 3 in column 1, its opposite in column 0
    column = torch.tensor([1.0 * (1 / 2), 0.11 * (1 / 3 - 1), 1.0 * (2 / 3)]) / 3
    assert torch.allclose(logits.grad, torch.stack([-column, column], dim=1), atol=1e-6)


def test_the_published_figure_of_one_sentence():
    """[CLS] + 10 words + [SEP], one word replaced, logits of zero: (1 + 11 * 0.11) ln 2 / 12 = 0.128, where a division by the
    weights would give ln 2 = 0.693."""
    replaced = torch.zeros(12, dtype=torch.bool)
    replaced[4] = True
    assert discrimination(torch.zeros(12, 2), replaced).item() == pytest.approx(2.21 * LN2 / 12, abs=1e-6)


def test_own_weights():
    logits = torch.tensor([[0.0, 0.0], [LN2, 0.0]])
    loss = discrimination(logits, torch.tensor([True, False]), weight_replaced=3.0, weight_kept=0.5)
    assert loss.item() == pytest.approx((3.0 * LN2 + 0.5 * LN3) / 2, abs=1e-6)


def test_a_confident_and_right_head_has_no_loss():
    logits = torch.tensor([[30.0, 0.0], [0.0, 30.0]])  # column 0: replaced, column 1: original
    assert discrimination(logits, torch.tensor([True, False])).item() == pytest.approx(0.0, abs=1e-6)


def test_no_tokens_and_no_weight_are_zero_on_the_graph():
    for tokens, weight in ((0, 0.11), (3, 0.0)):
        logits = torch.zeros(tokens, 2, requires_grad=True)
        loss = discrimination(logits, torch.zeros(tokens, dtype=torch.bool), weight_kept=weight)
        loss.backward()
        assert loss.item() == 0.0 and torch.equal(logits.grad, torch.zeros(tokens, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_extremes(dtype):
    logits = torch.tensor([[0.0, 60.0], [0.0, 60.0]], dtype=dtype, requires_grad=True)
    loss = discrimination(logits, torch.tensor([True, False]))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(60.0 / 2, rel=1e-5)
    assert logits.grad.isfinite().all() and logits.grad[0, 0] < -0.4
