"""ITM by hand; optimal transport against its marginals, a closed form and an exhaustive search."""

import itertools
import math

import pytest
import torch

from tagsds.losses.itm import itm, transport_distance, transport_plan, word_region_alignment

LN2, LN3 = math.log(2), math.log(3)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def test_itm_by_hand():
    logits = torch.tensor([[0.0, LN2], [0.0, LN2], [0.0, 0.0]], requires_grad=True)  # p(true) = 2/3, 2/3, 1/2
    loss = itm(logits, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx((math.log(3 / 2) + LN3 + LN2) / 3, abs=1e-6)
    loss.backward()
    column = torch.tensor([2 / 3 - 1, 2 / 3, 1 / 2 - 1]) / 3
    assert torch.allclose(logits.grad, torch.stack([-column, column], dim=1), atol=1e-6)


def test_itm_in_half_precision_and_without_pairs():
    assert itm(torch.tensor([[60.0, 0.0]]).half(), torch.tensor([True])).item() == pytest.approx(60.0, rel=1e-6)
    logits = torch.zeros(0, 2, requires_grad=True)
    loss = itm(logits, torch.zeros(0, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0


def test_first_iteration_by_hand():
    # one word pair against one region pair, cost [[0, c], [c, 0]], e = exp(-c / 0.5); T = 1, sigma = 1/2
    # Q = [[1, e], [e, 1]]; delta = (1/2) / ((1 + e) / 2) = 1 / (1 + e); sigma = (1/2) / ((1 + e) delta) = 1/2
    # T = [[1, e], [e, 1]] / (2 (1 + e))
    e = math.exp(-0.7 / 0.5)
    cost = torch.tensor([[[0.0, 0.7], [0.7, 0.0]]])
    plan = transport_plan(cost, ones(1, 2), ones(1, 2), iterations=1)
    assert torch.allclose(plan[0], torch.tensor([[1, e], [e, 1]]) / (2 * (1 + e)), atol=1e-6)
    # by symmetry every iteration only multiplies by [[1, e], [e, 1]] and normalises again
    plan = transport_plan(cost, ones(1, 2), ones(1, 2), iterations=3)
    assert torch.allclose(plan[0], torch.tensor([[1, e**3], [e**3, 1]]) / (2 * (1 + e**3)), atol=1e-6)


def test_marginals_are_uniform_over_what_is_present():
    torch.manual_seed(0)
    words, regions = torch.tensor([5, 3, 1, 6]), torch.tensor([4, 7, 7, 1])
    word_mask, region_mask = torch.arange(6) < words[:, None], torch.arange(7) < regions[:, None]
    plan = transport_plan(2 * torch.rand(4, 6, 7), word_mask, region_mask)
    assert (plan >= 0).all()
    assert torch.allclose(plan.sum(dim=2), word_mask / words[:, None], atol=1e-6)
    assert torch.allclose(plan.sum(dim=1), region_mask / regions[:, None], atol=2e-2)  # as far as it has converged
    longer = transport_plan(2 * torch.rand(4, 6, 7), word_mask, region_mask, iterations=1000)
    assert torch.allclose(longer.sum(dim=1), region_mask / regions[:, None], atol=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_square_cost_finds_the_best_assignment(seed):
    """With as many words as regions the optimum is a permutation (Birkhoff), found here by trying all of them."""
    size = 5
    cost = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) * 2
    columns = min(itertools.permutations(range(size)), key=lambda p: sum(cost[i, j].item() for i, j in enumerate(p)))
    best = sum(cost[i, j].item() for i, j in enumerate(columns)) / size
    plan = transport_plan(cost[None], ones(1, size), ones(1, size), iterations=2000)[0]
    assert (plan * cost).sum().item() == pytest.approx(best, abs=5e-3)
    assert (plan * cost).sum().item() < torch.full((size, size), 1 / size**2).mul(cost).sum().item()


def test_permutation_cost_is_solved_in_the_published_number_of_steps():
    order = [2, 0, 3, 1]
    cost = torch.ones(1, 4, 4)
    cost[0, range(4), order] = 0.0
    plan = transport_plan(cost, ones(1, 4), ones(1, 4))
    expected = torch.zeros(4, 4)
    expected[range(4), order] = 0.25
    assert torch.allclose(plan[0], expected, atol=1e-5)


def test_plan_is_float32_without_gradient_for_any_input():
    cost = torch.rand(1, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    plan = transport_plan(cost, ones(1, 3), ones(1, 4))
    assert plan.dtype == torch.float32 and not plan.requires_grad


def test_distance_by_hand():
    # words e1, e2; regions 3 e2, 2 e1: each word has its region at cosine 1, so nothing is to be carried
    words = torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])
    regions = torch.tensor([[[0.0, 3.0], [2.0, 0.0]]])
    assert transport_distance(words, ones(1, 2), regions, ones(1, 2)).item() == pytest.approx(0.0, abs=1e-5)
    # one word e1 against e2 (cosine 0), -e1 (cosine -1) and (1, 1) (cosine 1/sqrt 2), a third of the mass to each
    regions = torch.tensor([[[0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]]])
    expected = (1 + 2 + (1 - 1 / math.sqrt(2))) / 3
    distance = transport_distance(words[:, :1], ones(1, 1), regions, ones(1, 3))
    assert distance.shape == (1,) and distance.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rubbish", [7.0, 0.0, math.nan, math.inf])
def test_padding_changes_neither_distance_nor_gradient(rubbish):
    torch.manual_seed(0)
    word_counts, region_counts = [4, 2, 6], [5, 7, 3]
    rows = [(torch.randn(w, 8), torch.randn(r, 8)) for w, r in zip(word_counts, region_counts)]
    words, regions = torch.full((3, 9, 8), rubbish), torch.full((3, 11, 8), rubbish)
    for p, (w, r) in enumerate(rows):
        words[p, : len(w)], regions[p, : len(r)] = w, r
    words.requires_grad_(), regions.requires_grad_()
    word_mask = torch.arange(9) < torch.tensor(word_counts)[:, None]
    region_mask = torch.arange(11) < torch.tensor(region_counts)[:, None]
    together = transport_distance(words, word_mask, regions, region_mask)
    together.sum().backward()
    for p, (w, r) in enumerate(rows):
        w, r = w.clone().requires_grad_(), r.clone().requires_grad_()
        alone = transport_distance(w[None], ones(1, len(w)), r[None], ones(1, len(r)))
        alone.sum().backward()
        assert together[p].item() == pytest.approx(alone.item(), abs=1e-6)
        assert torch.allclose(words.grad[p, : len(w)], w.grad, atol=1e-6) and not words.grad[p, len(w) :].any()
        assert torch.allclose(regions.grad[p, : len(r)], r.grad, atol=1e-6) and not regions.grad[p, len(r) :].any()


def test_gradient_treats_the_plan_as_a_constant():
    torch.manual_seed(0)
    words, regions = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 5, 4, requires_grad=True)
    loss = transport_distance(words, ones(1, 3), regions, ones(1, 5)).sum()
    w = words / words.norm(dim=-1, keepdim=True)
    r = regions / regions.norm(dim=-1, keepdim=True)
    cost = torch.stack([torch.stack([1 - (w[0, i] * r[0, j]).sum() for j in range(5)]) for i in range(3)])
    plan = transport_plan(cost[None].detach(), ones(1, 3), ones(1, 5))[0]
    reference = sum(plan[i, j] * cost[i, j] for i in range(3) for j in range(5))
    assert loss.item() == pytest.approx(reference.item(), abs=1e-6)
    ours = torch.autograd.grad(loss, [words, regions])
    for a, b in zip(ours, torch.autograd.grad(reference, [words, regions])):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_pair_without_words_or_regions_costs_nothing():
    words, regions = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 5, 4)
    word_mask, region_mask = ones(2, 3), ones(2, 5)
    word_mask[0], region_mask[1] = False, False
    distance = transport_distance(words, word_mask, regions, region_mask)
    distance.sum().backward()
    assert distance.tolist() == [0.0, 0.0] and words.grad.isfinite().all()


def test_autocast_leaves_the_distance_in_float32():
    torch.manual_seed(0)
    words, regions = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    plain = transport_distance(words, ones(2, 3), regions, ones(2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        cast = transport_distance(words, ones(2, 3), regions, ones(2, 5))
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_word_region_alignment_by_hand():
    distance = torch.tensor([0.3, 0.9, 0.5, 0.4], requires_grad=True)
    loss = word_region_alignment(distance, torch.tensor([True, False, False, True]))
    assert loss.item() == pytest.approx((0.3 + 0.4 - 0.9 - 0.5) / 4, abs=1e-6)
    loss.backward()
    assert distance.grad.tolist() == [0.25, -0.25, -0.25, 0.25]
    nothing = torch.empty(0, requires_grad=True)
    word_region_alignment(nothing, torch.zeros(0, dtype=torch.bool)).backward()
