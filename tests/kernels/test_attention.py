"""Which attention runs where: the flash kernel's conditions, checked without a GPU."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from tagsds.kernels import attention
from tagsds.kernels.attention import Sequences, flash_runs, flash_takes, packed_attention

A100, H200, T4 = (8, 0), (9, 0), (7, 5)


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "expected"),
    [
        (torch.bfloat16, 64, A100, True),
        (torch.float16, 64, H200, True),
        (torch.float32, 64, H200, False),
        (torch.bfloat16, 64, T4, False),
        (torch.bfloat16, 8, A100, True),
        (torch.bfloat16, 256, H200, True),
        (torch.bfloat16, 264, H200, False),
        (torch.bfloat16, 4, A100, False),
        (torch.bfloat16, 12, A100, False),
        (torch.bfloat16, 20, H200, False),
        (torch.bfloat16, 63, H200, False),
        (torch.bfloat16, 512, H200, False),
    ],
)
def test_what_the_flash_kernel_takes(dtype, width, capability, expected):
    assert flash_takes(dtype, width, capability) is expected


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(("width", "expected"), [(64, True), (12, False), (264, False)])
def test_the_heads_width_of_the_query_decides(monkeypatch, width, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H200)
    query = torch.zeros(3, 2, width, dtype=torch.bfloat16)
    assert not flash_runs(query), "on a CPU"
    assert flash_runs(query.as_subclass(OnGpu)) is expected


@pytest.mark.parametrize("width", [12, 264])
def test_other_widths_take_the_padded_path(monkeypatch, width):
    """As on an H200: no import of the flash kernel, and the numbers of attention in each sequence alone."""
    monkeypatch.setattr(attention, "flash_runs", lambda query: flash_takes(query.dtype, query.shape[-1], H200))
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)  # its import would raise
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(7, 2, width, generator=generator, dtype=torch.bfloat16) for _ in range(3))
    sequences = Sequences.of(torch.tensor([3, 4]))
    out = packed_attention(query, key, value, sequences, sequences)
    for rows in (slice(0, 3), slice(3, 7)):
        q, k, v = (part[rows].transpose(0, 1).float() for part in (query, key, value))
        expected = (F.softmax(q @ k.mT / width**0.5, dim=-1) @ v).transpose(0, 1)
        assert torch.allclose(out[rows].float(), expected, atol=2e-2)
