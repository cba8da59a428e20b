"""Which implementation runs where: the conditions, checked without a GPU."""

from __future__ import annotations

import pytest
import torch

from tagsds.errors import UserError
from tagsds.kernels import choice
from tagsds.kernels.cpu import build

A100, H200, T4 = (8, 0), (9, 0), (7, 5)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


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
        (torch.bfloat16, 63, H200, False),
        (torch.bfloat16, 512, H200, False),
    ],
)
def test_what_the_flash_kernel_takes(dtype, width, capability, expected):
    assert choice.varlen_takes(dtype, width, capability) is expected


@pytest.mark.parametrize(
    ("dtype", "width", "dropout", "triton", "expected"),
    [
        (torch.bfloat16, 64, False, True, "varlen"),
        (torch.bfloat16, 64, True, True, "triton"),
        (torch.float32, 64, False, True, "reference"),
        (torch.float32, 64, True, True, "triton"),
        (torch.bfloat16, 64, True, False, "reference"),
        (torch.bfloat16, 12, False, True, "triton"),
        (torch.bfloat16, 512, False, True, "reference"),
    ],
)
def test_attention_on_a_gpu(monkeypatch, dtype, width, dropout, triton, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H200)
    monkeypatch.setattr(choice, "has_triton", lambda device: triton)
    assert choice.attention(GPU, dtype, width, dropout) == expected


def test_everything_can_be_forced_to_the_reference(monkeypatch):
    for operation in choice.names():
        with choice.forced({operation: "reference"}):
            assert choice.is_forced_to_reference(operation)
        assert not choice.is_forced_to_reference(operation)
    monkeypatch.setenv("TAGSDS_KERNELS", "reference")
    line = choice.report(CPU, torch.float32, 64, True)
    assert line == "kernels: attention reference, add_norm reference, linear reference, sample reference, select reference"
    monkeypatch.setenv("TAGSDS_KERNELS", "attention=reference,select=reference")
    assert choice.attention(CPU, torch.float32, 64, False) == "reference"
    assert not choice.is_forced_to_reference("linear")


@pytest.mark.parametrize("text", ["atention=reference", "attention=cpu", "fast"])
def test_a_wrong_name_is_one_sentence(monkeypatch, text):
    monkeypatch.setenv("TAGSDS_KERNELS", text)
    with pytest.raises(UserError, match="TAGSDS_KERNELS: "):
        choice.attention(CPU, torch.float32, 64, False)


def test_without_a_compiler_plain_torch_serves_and_the_report_says_why(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    caches = build.library, choice.compiled, choice.why_not_compiled
    for cached in caches:
        cached.cache_clear()
    try:
        assert choice.attention(CPU, torch.float32, 64, True) == "reference"
        assert choice.report(CPU, torch.float32, 64, True).endswith("(no C++ kernels: no-such-compiler is not installed)")
    finally:
        monkeypatch.undo()
        for cached in caches:
            cached.cache_clear()


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    fails = tmp_path / "cxx"
    fails.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setenv("TAGSDS_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(fails))
    build.library.cache_clear()
    try:
        with pytest.raises(build.NotBuiltError, match="no such header"):
            build.library()
        assert not list(tmp_path.glob("*.so")), "nothing half-made is left"
    finally:
        build.library.cache_clear()
