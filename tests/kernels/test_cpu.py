"""The kernels of a CPU against float64 references: values and every gradient, with the dropout of `tagsds.kernels.dropout`."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tagsds.kernels import choice
from tagsds.kernels.add_norm import add_norm
from tagsds.kernels.attention import Sequences, self_attention
from tagsds.kernels.cpu.build import compile_library
from tagsds.kernels.dropout import drop, kept
from tagsds.kernels.linear import FeatureLinear, Linear, QkvLinear, linear, pack, product, weights_ready_once
from tagsds.kernels.rows import new_rows, round_rows, with_spare

KEYS = [17, 1, 50, 122, 0, 33, 3]
QUERIES = [[17, 1, 50, 122, 0, 33, 3], [1, 0, 7, 40, 0, 2, 3], [0] * 7]

pytestmark = pytest.mark.skipif(not choice.compiled(), reason=f"no C++ kernels here: {choice.why_not_compiled()}")


def literal_attention(packed: Tensor, query: Tensor | None, heads: int, lengths: tuple[list[int], list[int]], p: float, seed: int):
    """One sequence and one head after the other."""
    parts = packed.chunk(3 if query is None else 2, dim=1)
    query = parts[0] if query is None else query
    key, value = parts[-2:]
    width = key.shape[1] // heads
    out, q0, k0 = [], 0, 0
    for asking, length in zip(*lengths, strict=True):
        rows = []
        for head in range(heads):
            of_head = slice(head * width, (head + 1) * width)
            q, k, v = query[q0 : q0 + asking, of_head], key[k0 : k0 + length, of_head], value[k0 : k0 + length, of_head]
            share = torch.softmax(q @ k.T / width**0.5, dim=1)
            if p:
                number = torch.arange(q0, q0 + asking) * heads + head
                share = share * kept(seed, number[:, None], torch.arange(length), p) / (1 - p)
            rows.append(share @ v)
        out.append(torch.cat(rows, dim=1))
        q0, k0 = q0 + asking, k0 + length
    return torch.cat(out)


def error(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a.detach().double() - b).abs().max()) if a.numel() else 0.0 for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "width"), [(4, 64), (2, 32), (3, 24), (1, 8), (5, 1), (2, 129), (1, 256)])
@pytest.mark.parametrize("asking", QUERIES)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_attention(dtype, heads, width, asking, p, monkeypatch):
    """The error is at most twice that of plain attention of the same precision, both against float64."""
    torch.manual_seed(0)
    monkeypatch.setattr("tagsds.kernels.attention.draw_seed", lambda: 1234)
    apart = asking != KEYS
    hidden = heads * width
    packed = torch.randn(sum(KEYS), (2 if apart else 3) * hidden).to(dtype).requires_grad_()
    query = torch.randn(sum(asking), hidden).to(dtype).requires_grad_() if apart else None
    weight = torch.randn(sum(asking), hidden).to(dtype)
    sequences, of_queries = Sequences.of(torch.tensor(KEYS)), Sequences.of(torch.tensor(asking))
    inputs = [packed] if query is None else [packed, query]

    def run(attend, given: list[Tensor]) -> list[Tensor]:
        out = attend(*given)
        return [out, *torch.autograd.grad(out, given, weight.to(out.dtype))]

    found = run(lambda *x: self_attention(x[0], x[1] if apart else None, heads, sequences, of_queries, p), inputs)
    plain, exact = (
        run(lambda *x: literal_attention(x[0], x[1] if apart else None, heads, (asking, KEYS), p, 1234), given)
        for given in (inputs, [x.detach().double().requires_grad_() for x in inputs])
    )
    floor = 4e-6 if dtype == torch.float32 else 4e-3
    for ours, theirs in zip(error(found, exact), error(plain, exact), strict=True):
        assert ours <= max(2 * theirs, floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(300, 256), (129, 40), (5, 7), (1, 768), (0, 16)])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_add_norm(dtype, rows, width, p, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("tagsds.kernels.add_norm.draw_seed", lambda: 77)
    x, residual, upstream = (torch.randn(rows, width).to(dtype) for _ in range(3))
    scale, shift = torch.randn(2, width)
    inputs = [t.requires_grad_() for t in (x, residual, scale, shift)]

    def literal(x: Tensor, residual: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(residual + (drop(x, 77, p) if p else x), (width,), scale.to(x.dtype), shift.to(x.dtype), 1e-12)

    def run(norm, given: list[Tensor]) -> list[Tensor]:
        out = norm(*given)
        return [out, *torch.autograd.grad(out, given, upstream.to(out.dtype))]

    found = run(lambda *given: add_norm(*given, 1e-12, p), inputs)
    plain, exact = (run(literal, given) for given in (inputs, [t.detach().double().requires_grad_() for t in inputs]))
    assert found[0].dtype == dtype
    floor = 4e-6 if dtype == torch.float32 else 4e-3
    for ours, theirs in zip(error(found, exact), error(plain, exact), strict=True):
        assert ours <= max(2 * theirs, floor)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_vectors_of_every_width(lanes, tmp_path, monkeypatch):
    """Those of NEON, AVX2 and AVX-512, on whatever processor this is: one that lacks a width computes in parts of it."""
    path = tmp_path / "cpu.so"
    compile_library(os.environ.get("CXX", "g++"), path, f"-DTAGSDS_LANES={lanes}", "-O1")
    for user in ("attention", "add_norm"):
        monkeypatch.setattr(f"tagsds.kernels.cpu.{user}.library", lambda: ctypes.CDLL(str(path)))
    for dtype in (torch.float32, torch.bfloat16):
        for heads, width in ((2, 32), (3, 24), (2, 129), (5, 1)):
            for asking in QUERIES:
                test_attention(dtype, heads, width, asking, 0.1, monkeypatch)
        for rows, width in ((129, 40), (5, 7), (130, 64)):
            test_add_norm(dtype, rows, width, 0.1, monkeypatch)


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    threads, results = torch.get_num_threads(), []
    packed, upstream = torch.randn(sum(KEYS), 3 * 64), torch.randn(sum(KEYS), 64)
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        x = packed.clone().requires_grad_()
        torch.manual_seed(5)
        sequences = Sequences.of(torch.tensor(KEYS))
        context = self_attention(x, None, 2, sequences, sequences, 0.1)
        out = add_norm(context, x[:, :64], torch.ones(64), torch.zeros(64), 1e-12, 0.1)
        out.backward(upstream)
        results.append((out.detach(), x.grad))
    torch.set_num_threads(threads)
    for out, gradient in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 65, 1000, 1025])
def test_linear(dtype, rows):
    """Forward, with GELU and without gradient too, and the three gradients; the rows behind the end touch nothing."""
    torch.manual_seed(0)
    layer = Linear(24, 40).to(dtype)
    memory = torch.full((round_rows(rows), 24), torch.nan, dtype=dtype)
    memory[:rows] = torch.randn(rows, 24)
    x = memory[:rows].detach().requires_grad_()
    upstream = torch.randn(rows, 40).to(dtype)
    inputs = [x, layer.weight, layer.bias]
    found = [layer(x), *torch.autograd.grad(layer(x), inputs, upstream)]
    double = [t.detach().double().requires_grad_() for t in inputs]
    exact_out = F.linear(*double)
    exact = [exact_out, *torch.autograd.grad(exact_out, double, upstream.double())]
    plain = [F.linear(*inputs), *torch.autograd.grad(F.linear(*inputs), inputs, upstream)]
    for ours, theirs in zip(error(found, exact), error(plain, exact), strict=True):
        assert ours <= max(2 * theirs, 1e-5 if dtype == torch.float32 else 2e-2)
    with torch.no_grad():
        assert error([layer(x, gelu=True)], [F.gelu(exact_out)])[0] <= (2e-6 if dtype == torch.float32 else 2e-2)


def test_queries_of_some_positions():
    torch.manual_seed(0)
    layer, x, asking = QkvLinear(16, 48), torch.randn(9, 16), torch.tensor([0, 4, 8])
    query, packed = layer(x, asking)
    whole = layer(x)
    assert torch.allclose(query, whole[asking, :16], atol=1e-6) and torch.allclose(packed, whole[:, 16:], atol=1e-6)


def test_autocast_casts_each_weight_once_and_never_mixes_them():
    """The casts are known by address: slices of one weight, made anew at each call, must not be taken for each other."""
    torch.manual_seed(0)
    layer, x, asking = QkvLinear(16, 48), torch.randn(9, 16), torch.arange(9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with weights_ready_once(layer):
            for _ in range(20):
                query, packed = layer(x, asking)
                assert query.dtype == torch.bfloat16
                assert torch.allclose(torch.cat([query, packed], dim=1), expected, atol=0.02)


def test_rows_to_spare():
    assert [round_rows(n) for n in (1, 8, 9, 64, 65, 1000, 1025, 4097)] == [8, 8, 16, 64, 72, 1008, 1056, 4224]
    assert max(round_rows(n) / n for n in range(256, 5000)) < 1.04
    x = new_rows(torch.empty(0), 1001, 4)
    assert x.shape == (1001, 4) and with_spare(x).shape == (1008, 4) and with_spare(x).data_ptr() == x.data_ptr()
    assert with_spare(torch.empty(1001, 4)).shape == (1001, 4), "nothing to spare"
    assert with_spare(torch.empty(4, 1001).T).shape == (1001, 4), "not contiguous"


def test_linear_of_other_shapes_and_precisions_is_pytorchs():
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    half = [t.half() for t in (x[0], weight, bias)]
    assert torch.equal(linear(*half), F.linear(*half))


def test_dropout_has_the_asked_odds_and_no_pattern():
    mask = kept(99, torch.arange(2000)[:, None], torch.arange(500), 0.1).double()
    assert abs(float(mask.mean()) - 0.9) < 1e-3
    assert float(mask.mean(dim=0).std()) < 2 * (0.09 / 2000) ** 0.5 and float(mask.mean(dim=1).std()) < 2 * (0.09 / 500) ** 0.5
    centred = mask - 0.9
    for other in (mask.roll(1, 0), mask.roll(1, 1), kept(100, torch.arange(2000)[:, None], torch.arange(500), 0.1).double()):
        assert abs(float((centred * (other - 0.9)).mean())) < 3e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_changes_no_bit(dtype):
    if not choice.has_onednn(dtype):
        pytest.skip(f"this processor has no packed products of {dtype}.")
    torch.manual_seed(0)
    x, weight, bias = torch.randn(257, 48).to(dtype), torch.randn(80, 48).to(dtype), torch.randn(80).to(dtype)
    assert torch.equal(product(x, weight, bias, pack(weight)), product(x, weight, bias))


def test_a_processor_that_cannot_pack_half_weights_takes_plain_products(monkeypatch):
    """As AVX2, where oneDNN says that it knows bfloat16."""

    def refuses(*_):
        raise RuntimeError("bf16 path needs the cpu support")

    ops = SimpleNamespace(_linear_pointwise=1, _reorder_linear_weight=refuses, _is_mkldnn_bf16_supported=lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", ops, raising=False)
    choice.has_onednn.cache_clear()
    assert choice.has_onednn(torch.float32) and not choice.has_onednn(torch.bfloat16)
    monkeypatch.undo()
    choice.has_onednn.cache_clear()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("weights", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
def test_stored_features_in_blocks(stored, weights, autocast, monkeypatch):
    """As of the whole table at once, with a gradient, too."""
    monkeypatch.setattr("tagsds.kernels.linear.SMALL", 0)
    monkeypatch.setattr("tagsds.kernels.linear.BLOCK", 64)
    torch.manual_seed(0)
    layer, x = FeatureLinear(24, 40).to(weights), torch.randn(150, 24).to(stored)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = layer(x)
        with torch.no_grad(), weights_ready_once(layer):
            blocks = layer(x)
    assert whole.requires_grad and blocks.dtype == whole.dtype == (torch.bfloat16 if autocast else weights)
    torch.testing.assert_close(blocks, whole.detach(), rtol=2e-2 if blocks.dtype == torch.bfloat16 else 1e-6, atol=1e-6)
