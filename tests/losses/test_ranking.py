"""The ranking hinge against numbers worked by hand, and slots that must not count."""

import math

import pytest
import torch

from tagsds.losses.ranking import contrast, hardest, triplet

TRUE = torch.tensor([0.9, 0.5, 0.2])
HARD = torch.tensor([[0.8, 0.1, 0.95], [0.6, 0.2, 0.3], [0.2, 0.4, 0.7]])


def test_all_valid_by_hand():
    # margin 0.2; pair 0: [.2+.8-.9, .2+.1-.9, .2+.95-.9]+ = .1, 0, .25
    #             pair 1: [.2+.6-.5, .2+.2-.5, .2+.3-.5]+   = .3, 0, 0
    #             pair 2: [.2+.2-.2, .2+.4-.2, .2+.7-.2]+   = .2, .4, .7
    expected = ((0.1 + 0 + 0.25) / 3 + (0.3 + 0 + 0) / 3 + (0.2 + 0.4 + 0.7) / 3) / 3
    assert triplet(TRUE, HARD, None, 0.2).item() == pytest.approx(expected, abs=1e-6)


def test_mean_is_over_valid_slots_then_over_pairs_that_have_one():
    valid = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    expected = ((0.1 + 0) / 2 + (0.4 + 0.7) / 2) / 2
    assert triplet(TRUE, HARD, valid, 0.2).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_invalid_slots_reach_neither_the_loss_nor_a_gradient(rubbish):
    valid = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    true = TRUE.clone().requires_grad_()
    hard = torch.where(valid, HARD, rubbish).requires_grad_()
    loss = triplet(true, hard, valid, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(((0.1 + 0) / 2 + (0.4 + 0.7) / 2) / 2, abs=1e-6)
    # pair 0: one of two slots is active -> 1/2 of the pair, 1/2 of the mean; pair 2: both active
    assert torch.allclose(true.grad, torch.tensor([-0.25, 0.0, -0.5]))
    assert torch.allclose(hard.grad, torch.tensor([[0.25, 0, 0], [0, 0, 0], [0, 0.25, 0.25]]))


@pytest.mark.parametrize("slots", [0, 3])
def test_nothing_valid_is_zero_on_the_graph(slots):
    true = TRUE.clone().requires_grad_()
    hard = torch.full((3, slots), math.nan, requires_grad=True)
    loss = triplet(true, hard, torch.zeros(3, slots, dtype=torch.bool), 0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(true.grad, torch.zeros(3)) and torch.equal(hard.grad, torch.zeros(3, slots))


def test_no_pairs():
    true = torch.empty(0, requires_grad=True)
    loss = triplet(true, torch.empty(0, 4), None, 0.2)
    loss.backward()
    assert loss.item() == 0.0


def test_half_precision_is_computed_in_float32():
    loss = triplet(TRUE.bfloat16(), HARD.bfloat16(), None, 0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(triplet(TRUE.bfloat16().float(), HARD.bfloat16().float(), None, 0.2).item())


def test_gradient_equals_a_literal_double_loop():
    torch.manual_seed(0)
    valid = torch.rand(7, 5) < 0.6
    valid[3] = False
    true, hard = torch.rand(7, requires_grad=True), torch.rand(7, 5, requires_grad=True)
    terms = []
    for b in range(7):
        row = [torch.clamp(0.2 + hard[b, k] - true[b], min=0) for k in range(5) if valid[b, k]]
        if row:
            terms.append(sum(row) / len(row))
    reference = sum(terms) / len(terms)
    loss = triplet(true, hard, valid, 0.2)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, [true, hard]), torch.autograd.grad(reference, [true, hard])):
        assert torch.allclose(ours, theirs, atol=1e-7)


def test_hardest_takes_the_highest_valid_scores_in_order():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    index, valid = hardest(scores, 2)
    assert index.tolist() == [[1, 3], [0, 1]] and valid.all()
    index, valid = hardest(scores, 2, torch.tensor([[True, False, True, True], [False, False, False, True]]))
    assert index[0].tolist() == [3, 2] and valid[0].tolist() == [True, True]
    assert index[1, 0].item() == 3 and valid[1].tolist() == [True, False]


def test_hardest_with_fewer_candidates_than_asked_for():
    index, valid = hardest(torch.tensor([[0.2, 0.8]]), 31, torch.tensor([[True, True]]))
    assert index.tolist() == [[1, 0]] and valid.shape == (1, 2)
    index, valid = hardest(torch.empty(3, 0), 31)
    assert index.shape == valid.shape == (3, 0)


def test_hardest_never_reports_an_invalid_slot_as_valid():
    torch.manual_seed(1)
    scores, valid = torch.randn(40, 25), torch.rand(40, 25) < 0.3
    scores[~valid] = math.nan
    index, held = hardest(scores, 10, valid)
    for b in range(40):
        pool = sorted((scores[b, c].item(), c) for c in range(25) if valid[b, c])[::-1][:10]
        assert index[b][held[b]].tolist() == [c for _, c in pool]


def test_contrast_by_hand():
    # pair 0 keeps the logits 1 and -1 beside its true 2, pair 1 nothing, pair 2 the logit 3 beside its true 0
    true, valid = torch.tensor([2.0, 5.0, 0.0]), torch.tensor([[True, True], [False, False], [False, True]])
    hard = torch.tensor([[1.0, -1.0], [9.0, 9.0], [9.0, 3.0]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + math.exp(-1)))
    third = -math.log(1 / (1 + math.exp(3)))
    assert contrast(true, hard, valid).item() == pytest.approx((first + third) / 2, abs=1e-6)
    everything = -math.log(math.exp(5) / (math.exp(5) + 2 * math.exp(9)))
    assert contrast(true[1:2], hard[1:2], None).item() == pytest.approx(everything, abs=1e-6)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_contrast_of_invalid_slots_has_no_gradient(rubbish):
    valid = torch.tensor([[True, False], [False, False]])
    true, hard = torch.zeros(2, requires_grad=True), torch.tensor([[0.0, rubbish], [rubbish, rubbish]], requires_grad=True)
    contrast(true, hard, valid).backward()
    assert true.grad.tolist() == [-0.5, 0.0] and hard.grad.tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_contrast_without_a_slot_is_zero_and_hangs_on_the_graph():
    true, hard = torch.zeros(2, requires_grad=True), torch.full((2, 1), 4.0, requires_grad=True)
    loss = contrast(true, hard, torch.zeros(2, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0 and true.grad.tolist() == [0.0, 0.0] and hard.grad.tolist() == [[0.0], [0.0]]
