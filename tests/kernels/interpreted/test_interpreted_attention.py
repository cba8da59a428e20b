"""The attention kernels on CPU tensors, in Triton's interpreter: odd shapes, empty rows, masks."""

from __future__ import annotations

import pytest
import torch

from tagsds.kernels.attention import Sequences, padded_attention
from tagsds.kernels.dropout import kept
from tagsds.kernels.triton.attention import attention, self_attention
from tests.kernels.checks import check_attention, random

FULL = ([5, 17, 1], [5, 17, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [FULL, ([1, 0, 3], [4, 19, 3])], ids=["all", "few"])
def test_values_and_gradients(dtype, dropout, lengths):
    check_attention("cpu", dtype, 2, 16, lengths, dropout)


@pytest.mark.parametrize(("heads", "width"), [(1, 8), (3, 24), (1, 72), (1, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widths_of_a_head(heads, width, dtype):
    check_attention("cpu", dtype, heads, width, ([3, 2], [3, 5]), 0.2)


def test_several_blocks_of_queries_and_keys():
    check_attention("cpu", torch.bfloat16, 1, 16, ([70, 3], [70, 40]), 0.1)
    check_attention("cpu", torch.float32, 1, 16, ([33, 0, 18], [33, 35, 18]), 0.1)


def test_sequences_without_keys_or_queries_or_both():
    check_attention("cpu", torch.float32, 2, 16, ([2, 0, 0, 3], [0, 4, 0, 3]), 0.2)
    check_attention("cpu", torch.float32, 2, 16, ([2, 1], [0, 0]))


def test_no_query_at_all_gives_zero_gradients():
    sequences = Sequences.of(torch.tensor([0, 0])), Sequences.of(torch.tensor([2, 3]))
    key, value = (x.requires_grad_() for x in random("cpu", (5, 2, 16), (5, 2, 16)))
    query = torch.zeros(0, 2, 16, requires_grad=True)
    out = attention(query, key, value, *sequences, 0.1, 1)
    assert out.shape == (0, 2, 16)
    grads = torch.autograd.grad(out.sum(), (query, key, value))
    assert [x.shape[0] for x in grads] == [0, 5, 5] and not grads[1].any() and not grads[2].any()


def test_the_mask_is_that_of_the_rule_to_the_bit():
    """With q = 0 each probability is 1 / L, and with v = the identity the output is the row of the mask over its constant."""
    lengths, heads, width, seed, p = [5, 16, 3], 3, 16, 987_654_321, 0.4
    sequences, total = Sequences.of(torch.tensor(lengths)), sum(lengths)
    value = torch.cat([torch.eye(width)[:length] for length in lengths])[:, None, :].expand(total, heads, width)
    zero = torch.zeros(total, heads, width)
    out = attention(zero, zero, value, sequences, sequences, p, seed)
    row = (torch.arange(total)[:, None] * heads + torch.arange(heads))[:, :, None]
    expected = kept(seed, row, torch.arange(width), p)
    inside = torch.arange(width) < torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))[:, None]
    assert torch.equal(out > 0, expected & inside[:, None, :])
    other = attention(zero, zero, value, sequences, sequences, p, seed + 1)
    assert not torch.equal(out > 0, other > 0)


def test_it_is_the_padded_attention_where_nothing_is_dropped():
    sequences = Sequences.of(torch.tensor([4, 9, 2]))
    query, key, value = random("cpu", *3 * [(15, 2, 24)])
    torch.testing.assert_close(
        attention(query, key, value, sequences, sequences, 0.0, 0), padded_attention(query, key, value, sequences, sequences)
    )


def test_one_projection_gives_the_same_to_the_bit_as_three_tensors():
    sequences = Sequences.of(torch.tensor([4, 0, 9]))
    (qkv, grad) = random("cpu", (13, 3 * 32), (13, 2, 16))
    qkv.requires_grad_()
    query, key, value = (x.unflatten(1, (2, 16)) for x in qkv.split(32, dim=1))
    apart = attention(query, key, value, sequences, sequences, 0.2, 5)
    joint = self_attention(qkv, 2, sequences, 0.2, 5)
    assert torch.equal(apart, joint)
    assert torch.equal(torch.autograd.grad(apart, qkv, grad)[0], torch.autograd.grad(joint, qkv, grad)[0])


def test_a_gradient_that_is_not_contiguous_and_a_key_that_is_not_compact():
    sequences = Sequences.of(torch.tensor([4, 3]))
    query, key, value, grad = (x.transpose(0, 1) for x in random("cpu", *4 * [(2, 7, 16)]))
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    ours = attention(leaves[0], key, leaves[2], sequences, sequences, 0.0, 1)
    plain = padded_attention(leaves[0], key.contiguous(), leaves[2], sequences, sequences)
    for a, b in zip(torch.autograd.grad(ours, leaves[::2], grad), torch.autograd.grad(plain, leaves[::2], grad)):
        torch.testing.assert_close(a, b)


def test_what_it_does_not_take_is_said():
    sequences = Sequences.of(torch.tensor([2]))
    with pytest.raises(ValueError, match="at most 256"):
        attention(*random("cpu", *3 * [(2, 1, 264)]), sequences, sequences, 0.0, 0)
    with pytest.raises(ValueError, match="less than 1"):
        attention(*random("cpu", *3 * [(2, 1, 16)]), sequences, sequences, 1.0, 0)
