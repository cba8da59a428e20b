"""Word and region losses against numbers worked by hand, empty inputs and half precision extremes."""

import math

import pytest
import torch

from tagsds.losses.masked import likeliest_class, region_cross_entropy, region_kl, region_mse, word_cross_entropy

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def test_word_cross_entropy_by_hand():
    # softmax of ln[1, 2, 1] is [1/4, 1/2, 1/4]; of zeros 1/3 each
    logits = torch.tensor([[0.0, LN2, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = word_cross_entropy(logits, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx((LN4 + LN3) / 2, abs=1e-6)
    loss.backward()  # (softmax - one hot) / 2
    expected = [[(1 / 4 - 1) / 2, (1 / 2) / 2, (1 / 4) / 2], [(1 / 3) / 2, (1 / 3) / 2, (1 / 3 - 1) / 2]]
    assert torch.allclose(logits.grad, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_underflow_in_half_precision(dtype):
    # p = e^-60 / (1 + e^-60) is 0 in fp16, and clamped at 1e-10 its log would be -23; the loss is 60 and has a gradient
    logits = torch.tensor([[0.0, 60.0]], dtype=dtype, requires_grad=True)
    loss = word_cross_entropy(logits, torch.tensor([0]))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(60.0, rel=1e-6)
    loss.backward()
    assert logits.grad.tolist() == [[-1.0, 1.0]]

    soft = torch.tensor([[1.0, 0.0]], dtype=dtype)
    assert region_kl(logits, soft, "sum").item() == pytest.approx(60.0, rel=1e-6)
    assert region_cross_entropy(logits, soft, background=False).item() == pytest.approx(60.0, rel=1e-6)


def test_fp16_sum_would_overflow():
    # 300 errors of 20: the squares sum to 120,000, beyond fp16
    assert region_mse(torch.full((1, 300), 20.0).half(), torch.zeros(1, 300).half()).item() == pytest.approx(400.0)


def test_region_mse_by_hand():
    predicted = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    target = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    loss = region_mse(predicted, target)
    assert loss.item() == pytest.approx((1 + 0 + 9 + 4) / 4)
    loss.backward()
    assert torch.allclose(predicted.grad, 2 * torch.tensor([[1.0, 0.0], [-3.0, -2.0]]) / 4)


def test_region_kl_by_hand():
    logits = torch.tensor([[0.0, LN2, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)  # [1/4, 1/2, 1/4], [1/3, 1/3, 1/3]
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    # row 0: 1/2 ln((1/2)/(1/4)) + 1/2 ln((1/2)/(1/2)) + 0 = 1/2 ln 2; row 1: ln(1/(1/3)) = ln 3
    loss = region_kl(logits, soft, "sum")
    assert loss.item() == pytest.approx((LN2 / 2 + LN3) / 2, abs=1e-6)
    loss.backward()  # (softmax - soft) / 2
    expected = torch.tensor([[1 / 4 - 1 / 2, 0.0, 1 / 4], [1 / 3, 1 / 3 - 1, 1 / 3]]) / 2
    assert torch.allclose(logits.grad, expected, atol=1e-6)
    # the published reduction averages over the three classes as well
    assert region_kl(logits, soft).item() == pytest.approx((LN2 / 2 + LN3) / 2 / 3, abs=1e-6)


def test_published_kl_is_a_1601st_of_the_papers():
    torch.manual_seed(0)
    logits, soft = torch.randn(5, 1601), torch.rand(5, 1601).softmax(dim=-1)
    assert region_kl(logits, soft, "sum").item() == pytest.approx(1601 * region_kl(logits, soft).item(), rel=1e-5)


def test_region_kl_is_zero_at_the_target_itself():
    soft = torch.tensor([[0.2, 0.3, 0.5]])
    assert region_kl(soft.log() + 3.0, soft).item() == pytest.approx(0.0, abs=1e-6)


def test_region_cross_entropy_takes_the_likeliest_class():
    logits = torch.tensor([[0.0, LN2, 0.0], [0.0, 0.0, 0.0]])
    soft = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.1, 0.8]])
    assert region_cross_entropy(logits, soft, background=False).item() == pytest.approx((LN4 + LN3) / 2, abs=1e-6)


def test_background_is_never_the_target():
    logits = torch.tensor([[0.0, LN2, 0.0], [0.0, 0.0, 0.0]])  # probabilities [1/4, 1/2, 1/4], [1/3, 1/3, 1/3]
    soft = torch.tensor([[0.4, 0.3, 0.3], [0.9, 0.0, 0.1]])  # column 0, the background, is likeliest in both rows
    assert likeliest_class(soft, background=True).tolist() == [1, 2]
    assert likeliest_class(soft, background=False).tolist() == [0, 0]
    assert region_cross_entropy(logits, soft, background=True).item() == pytest.approx((LN2 + LN3) / 2, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_masked_is_zero_on_the_graph(dtype):
    weight = torch.ones(4, 6, dtype=dtype, requires_grad=True)
    states = torch.empty(0, 4, dtype=dtype) @ weight  # [0, 6]
    nothing = torch.empty(0, 6)
    losses = [
        word_cross_entropy(states, torch.empty(0, dtype=torch.int64)),
        region_mse(states, nothing),
        region_kl(states, nothing),
        region_cross_entropy(states, nothing, background=True),
    ]
    for loss in losses:
        assert loss.item() == 0.0 and loss.dtype == torch.float32 and loss.requires_grad
    sum(losses).backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
