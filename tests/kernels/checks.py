"""Checks of the Triton kernels on any device: values and every gradient against float64, by the rule of flash-attention's tests.

Rule: the kernel's largest error is at most twice that of plain torch in the same dtype, both against float64. `FLOOR` is allowed
where torch happens to be exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tagsds.kernels.attention import Sequences
from tagsds.kernels.dropout import kept

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}  # relative to the largest number


def literal_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[Sequence[int], Sequence[int]], dropout: float, seed: int
) -> Tensor:
    """One sequence and head at a time, by the definition, in the dtype of what is given; [Nq, A, D]."""
    heads, width = query.shape[1:]
    parts, q_start, k_start = [], 0, 0
    for queries, keys in zip(*lengths, strict=True):
        for head in range(heads):
            q = query[q_start : q_start + queries, head]
            k, v = key[k_start : k_start + keys, head], value[k_start : k_start + keys, head]
            p = (q @ k.T / math.sqrt(width)).softmax(dim=1)
            if dropout:
                row = (torch.arange(queries, device=q.device) + q_start) * heads + head
                keep = kept(seed, row[:, None], torch.arange(keys, device=q.device), dropout)
                p = torch.where(keep, p / (1 - dropout), 0 * p)
            parts.append(p @ v)
        q_start, k_start = q_start + queries, k_start + keys
    by_sequence = [torch.stack(parts[start : start + heads], dim=1) for start in range(0, len(parts), heads)]
    return torch.cat(by_sequence)


def literal_add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float, seed: int) -> Tensor:
    """In the dtype of x, by torch's operations."""
    if dropout:
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
        x = torch.where(kept(seed, rows[:, None], columns, dropout), x / (1 - dropout), 0 * x)
    return F.layer_norm(residual.to(x.dtype) + x, x.shape[1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def values_and_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def hold(kernel: list[Tensor], plain: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """The rule, for each number of the three lists: value, then gradients."""
    for place, (ours, theirs, truth) in enumerate(zip(kernel, plain, exact, strict=True)):
        assert ours.shape == truth.shape
        assert ours.isfinite().all(), place
        if not truth.numel():
            continue
        error, allowed = ((x.double() - truth).abs().max().item() for x in (ours, theirs))
        floor = FLOOR[dtype] * truth.abs().max().item()
        assert error <= 2 * allowed + floor, f"tensor {place}: error {error:.3g}, of plain torch {allowed:.3g}"


def random(device: torch.device | str, *shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """float32 normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def check_attention(
    device: torch.device | str, dtype: torch.dtype, heads: int, width: int,
    lengths: tuple[Sequence[int], Sequence[int]], dropout: float = 0.0, seed: int = 123_456_789,
) -> None:  # fmt: skip
    """The kernel on strided views: keys and values are parts of one projection [Nk, 3H]; queries too where they are as many."""
    from tagsds.kernels.triton.attention import attention

    q_sequences, k_sequences = (Sequences.of(torch.tensor(list(part), device=device)) for part in lengths)
    shapes = [(sum(lengths[0]), heads, width)] + 2 * [(sum(lengths[1]), heads, width)]
    *tensors, grad = (x.to(dtype) for x in random(device, *shapes, shapes[0]))

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        qkv = torch.cat([key, value, query if query.shape == key.shape else key], dim=1).flatten(1)
        k, v, q = (x.unflatten(1, (heads, width)) for x in qkv.split(heads * width, dim=1))
        return attention(q if query.shape == key.shape else query, k, v, q_sequences, k_sequences, dropout, seed)

    def literal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return literal_attention(query, key, value, lengths, dropout, seed)

    exact = values_and_gradients(literal, [x.double() for x in tensors], grad.double())
    hold(values_and_gradients(kernel, tensors, grad), values_and_gradients(literal, tensors, grad), exact, dtype)


def check_add_norm(
    device: torch.device | str, dtype: torch.dtype, shape: tuple[int, int], dropout: float = 0.0,
    residual: torch.dtype | None = None, weights: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """`residual` and `weights`: dtypes of the residual (None: that of x) and of weight and bias."""
    from tagsds.kernels.triton.add_norm import add_norm

    width = shape[1:]
    x, r, w, b, grad = random(device, shape, shape, width, width, shape)
    tensors = [x.to(dtype), (3 * r + 1).to(residual or dtype), w.to(weights), b.to(weights)]
    grad = grad.to(dtype)
    rest = (1e-12, dropout, 2_000_000_011)
    exact = values_and_gradients(lambda *given: literal_add_norm(*given, *rest), [x.double() for x in tensors], grad.double())
    plain = values_and_gradients(lambda *given: literal_add_norm(*given, *rest), tensors, grad)
    ours = values_and_gradients(lambda *given: add_norm(*given, *rest), tensors, grad)
    assert ours[0].dtype == dtype and [x.dtype for x in ours[1:]] == [x.dtype for x in tensors]
    hold(ours, plain, exact, dtype)


def vocabulary(device: torch.device | str, count: int, pieces: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """states [count, width], weight, bias and allowed pieces, about a tenth of them left out."""
    states, weight, bias, chance = random(device, (count, width), (pieces, width), (pieces,), (pieces,))
    return states, weight * (2 / math.sqrt(width)), bias, chance < 1.3


def chi_square(drawn: Tensor, probability: Tensor) -> tuple[float, int]:
    """Pearson's statistic of draws (int64, any shape) against probabilities [V], and its degrees of freedom; pieces expected less
    than ten times are counted together."""
    counts = torch.bincount(drawn.flatten(), minlength=len(probability)).double()
    expected = probability.double() * drawn.numel()
    often = expected >= 10
    counts = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    return float(((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum()), int(often.sum())
