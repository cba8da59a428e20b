"""Dropout + residual + LayerNorm on CPU tensors, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tagsds.kernels.dropout import drop, kept
from tagsds.kernels.triton.add_norm import add_norm
from tests.kernels.checks import check_add_norm, random

EPS = 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(1, 1), (5, 24), (37, 100)])
def test_values_and_gradients(dtype, dropout, shape):
    if shape == (1, 1):  # the variance is zero and the published eps 1e-12: nothing may be infinite
        x, r, w, b = (y.to(dtype) for y in random("cpu", shape, shape, (1,), (1,)))
        assert torch.equal(add_norm(x, r, w, b, EPS, dropout, 3), b[None])
        return
    check_add_norm("cpu", dtype, shape, dropout)


def test_widest_rows():
    check_add_norm("cpu", torch.bfloat16, (3, 4096), 0.1)
    with pytest.raises(ValueError, match="at most 4096"):
        add_norm(*random("cpu", (1, 4097), (1, 4097), (4097,), (4097,)), EPS, 0.0, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_each_tensor_may_have_a_dtype_of_its_own(dropout):
    check_add_norm("cpu", torch.bfloat16, (9, 48), dropout, residual=torch.float32, weights=torch.bfloat16)


def test_the_mask_is_that_of_the_rule_to_the_bit():
    """The gradient of x is zero exactly where it was dropped."""
    x, r, grad = random("cpu", (19, 40), (19, 40), (19, 40))
    x.requires_grad_()
    out = add_norm(x, r, torch.ones(40), torch.zeros(40), EPS, 0.4, 77)
    (dx,) = torch.autograd.grad(out, x, grad)
    assert torch.equal(dx != 0, kept(77, torch.arange(19)[:, None], torch.arange(40), 0.4))


def test_no_row():
    x, r, w, b = (y.requires_grad_() for y in random("cpu", (0, 8), (0, 8), (8,), (8,)))
    grads = torch.autograd.grad(add_norm(x, r, w, b, EPS, 0.1, 1).sum(), (x, r, w, b))
    assert [tuple(g.shape) for g in grads] == [(0, 8), (0, 8), (8,), (8,)]
    assert not grads[2].any() and not grads[3].any()


def test_the_residuals_rows_are_gathered():
    x, table, w, b = random("cpu", (6, 24), (4, 24), (24,), (24,))
    rows = torch.tensor([3, 0, 0, 1, 3, 2])
    for dropout in (0.0, 0.3):
        with torch.no_grad():
            out = add_norm(x, table, w, b, EPS, dropout, 11, rows)
        torch.testing.assert_close(out, F.layer_norm(table[rows] + (drop(x, 11, dropout) if dropout else x), (24,), w, b, EPS))
    with pytest.raises(ValueError, match="no gradient"):
        add_norm(x.requires_grad_(), table, w, b, EPS, 0.0, 11, rows)


def test_gradients_repeat_to_the_bit_and_views_are_taken():
    x, r, w, b, grad = random("cpu", (40, 64), (40, 64), (32,), (32,), (40, 32))
    leaves = [x[:, ::2].requires_grad_(), r[:, 32:].requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    first, second = (torch.autograd.grad(add_norm(*leaves, EPS, 0.1, 4), leaves, grad) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second))
    plain = F.layer_norm(leaves[1] + drop(leaves[0], 4, 0.1), (32,), w, b, EPS)
    for ours, theirs in zip(first, torch.autograd.grad(plain, leaves, grad)):
        torch.testing.assert_close(ours, theirs)
