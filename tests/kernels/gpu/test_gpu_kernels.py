"""The Triton kernels on a GPU at the sizes of the published models: the same checks as in the interpreter. `pytest -m gpu`"""

from __future__ import annotations

import pytest
import torch

from tagsds.kernels import sample as reference
from tagsds.kernels.attention import Sequences
from tagsds.kernels.dropout import kept
from tagsds.kernels.triton import runs_on
from tests.kernels.checks import check_add_norm, check_attention, chi_square, random, vocabulary

GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not runs_on(torch.empty(0, device="cuda")),
        reason="no GPU of compute capability 8.0 or later with Triton here: the kernels are checked in the interpreter alone",
    ),
]


def lengths_of(count: int, shortest: int = 20, longest: int = 150) -> list[int]:
    return torch.randint(shortest, longest + 1, (count,), generator=torch.Generator().manual_seed(count)).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("heads", "width"), [(12, 64), (2, 24), (2, 128), (1, 256)])
def test_attention(dtype, dropout, heads, width):
    keys = lengths_of(24)
    check_attention(GPU, dtype, heads, width, (keys, keys), dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_of_few_queries(dropout):
    """The last layer: [CLS] alone, a few positions, or nothing of a sequence."""
    keys = lengths_of(24)
    check_attention(GPU, torch.bfloat16, 12, 64, ([1] * 24, keys), dropout)
    check_attention(GPU, torch.bfloat16, 12, 64, ([0, 3] * 12, [*keys[:-2], 0, 40]), dropout)


def test_gradients_of_attention_repeat_to_the_bit():
    from tagsds.kernels.triton.attention import self_attention

    sequences = Sequences.of(torch.tensor(lengths_of(200), device=GPU))
    total = int(sequences.lengths.sum())
    qkv, grad = (x.bfloat16() for x in random(GPU, (total, 3 * 768), (total, 12, 64)))
    qkv.requires_grad_()
    first, *others = (torch.autograd.grad(self_attention(qkv, 12, sequences, 0.1, 7), qkv, grad)[0] for _ in range(4))
    assert all(torch.equal(first, other) for other in others)


def test_the_mask_of_attention_is_that_of_the_rule_to_the_bit():
    from tagsds.kernels.triton.attention import attention

    count, length, heads, p, seed = 50, 64, 12, 0.1, 2_147_483_647
    sequences = Sequences.of(torch.full((count,), length, device=GPU))
    value = torch.eye(length, device=GPU)[None, :, None, :].expand(count, length, heads, length).flatten(0, 1)
    out = attention(torch.zeros_like(value), torch.zeros_like(value), value, sequences, sequences, p, seed)
    row = torch.arange(count * length * heads, device=GPU).view(-1, heads, 1)
    assert torch.equal(out > 0, kept(seed, row, torch.arange(length, device=GPU), p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(4099, 768), (1000, 1024), (17, 100), (33, 4096)])
def test_add_norm(dtype, dropout, shape):
    check_add_norm(GPU, dtype, shape, dropout)


def test_add_norm_of_a_residual_in_float32_and_its_mask():
    from tagsds.kernels.triton.add_norm import add_norm

    check_add_norm(GPU, torch.bfloat16, (2000, 768), 0.1, residual=torch.float32)
    x, r, grad = random(GPU, *3 * [(3000, 768)])
    x.requires_grad_()
    weight, bias = torch.ones(768, device=GPU), torch.zeros(768, device=GPU)
    first, second = (torch.autograd.grad(add_norm(x, r, weight, bias, 1e-12, 0.1, 5), x, grad)[0] for _ in range(2))
    assert torch.equal(first, second)
    rows, columns = torch.arange(3000, device=GPU), torch.arange(768, device=GPU)
    assert (kept(5, rows[:, None], columns, 0.1) | (first == 0)).all()


@pytest.mark.parametrize(("dtype", "differ"), [(torch.float32, 2e-4), (torch.bfloat16, 2e-4)])
def test_the_draws_are_those_of_the_reference_but_for_rounding(dtype, differ):
    from tagsds.kernels.triton.sample import sample_pieces

    states, weight, bias, allowed = vocabulary(GPU, 300, 28_996, 768)
    states, weight = states.to(dtype), weight.to(dtype)
    drawn = sample_pieces(states, weight, bias, allowed, 1.5, 20, 99)
    assert allowed[drawn].all()
    expected = reference.sample_pieces(states, weight, bias, allowed, 1.5, 20, 99)
    assert float((drawn != expected).double().mean()) <= differ


def test_the_draws_follow_softmax():
    from tagsds.kernels.triton.sample import sample_pieces

    states, weight, bias, allowed = vocabulary(GPU, 1, 2_000, 768)
    probability = torch.softmax(((states @ weight.T + bias) / 1.5).masked_fill(~allowed, -torch.inf)[0].double(), dim=0)
    statistic, freedom = chi_square(sample_pieces(states.expand(20_000, -1), weight, bias, allowed, 1.5, 20, 1), probability)
    assert freedom > 500
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5
