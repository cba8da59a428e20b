"""Which implementation serves an operation: chosen here alone, by device, dtype, head width and what is installed.

    TAGSDS_KERNELS=reference        every operation by plain torch
    TAGSDS_KERNELS=attention=reference,linear=reference   some of them

Implementations: `reference` is plain torch and serves everything; `cpu` is C++ (tagsds/kernels/cpu), compiled at first
use; `onednn` PyTorch's oneDNN product with the bias in its epilogue; `varlen` PyTorch's variable-length flash attention; `triton`
tagsds/kernels/triton.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch

from tagsds.errors import UserError, nearest
from tagsds.kernels.cpu import attention as cpu_attention
from tagsds.kernels.cpu.build import NotBuiltError, library

OPERATIONS = {
    "attention": "attention over packed sequences",
    "add_norm": "dropout + residual + LayerNorm",
    "linear": "linear layers",
    "sample": "refills of masked words, drawn from the vocabulary",
    "select": "the k highest scores of rows and columns",
}
VARIABLE = "TAGSDS_KERNELS"
HALVES = (torch.float16, torch.bfloat16)
FLASH_WIDTHS = range(8, 257, 8)  # of a head: what PyTorch's variable-length flash attention takes without padding the head

_forced: list[dict[str, str]] = []


def names() -> list[str]:
    """The operations that have more than one implementation."""
    return list(OPERATIONS)


@contextmanager
def forced(choices: Mapping[str, str]) -> Iterator[None]:
    """{operation: "reference"} inside: for tests, and to measure what a kernel brings."""
    _check(choices)
    _forced.append(dict(choices))
    try:
        yield
    finally:
        _forced.pop()


def is_forced_to_reference(operation: str) -> bool:
    if any(operation in choices for choices in _forced):
        return True
    return operation in _of_environment(os.environ.get(VARIABLE, ""))


@cache
def _of_environment(text: str) -> dict[str, str]:
    if text in ("", "auto"):
        return {}
    if text == "reference":
        return dict.fromkeys(OPERATIONS, "reference")
    choices = dict(part.partition("=")[::2] for part in text.split(","))
    _check(choices)
    return choices


def _check(choices: Mapping[str, str]) -> None:
    for operation, choice in choices.items():
        if operation not in OPERATIONS:
            raise UserError(f"{VARIABLE}: there is no operation {operation!r}; {nearest(operation, OPERATIONS)}")
        if choice != "reference":
            raise UserError(f"{VARIABLE}: {operation} can only be set to reference, not to {choice!r}.")


def attention(device: torch.device, dtype: torch.dtype, width: int, dropout: bool) -> str:
    """The implementation of attention for heads of `width`."""
    if is_forced_to_reference("attention"):
        return "reference"
    if device.type == "cpu":
        return "cpu" if compiled() and cpu_attention.takes(dtype, width) else "reference"
    if device.type == "cuda":
        if not dropout and varlen_takes(dtype, width, torch.cuda.get_device_capability(device)):
            return "varlen"
        # float32 without dropout: padded SDPA has tuned kernels; with dropout the mask is to be the other kernels'
        return "triton" if has_triton(device) and width <= 256 and (dropout or dtype in HALVES) else "reference"
    return "reference"


def add_norm(device: torch.device, dtype: torch.dtype) -> str:
    """The implementation of LayerNorm(residual + dropout(x))."""
    if is_forced_to_reference("add_norm"):
        return "reference"
    if device.type == "cpu":
        return "cpu" if compiled() and dtype in (torch.float32, torch.bfloat16) else "reference"
    return "triton" if device.type == "cuda" and has_triton(device) else "reference"


def linear(device: torch.device, dtype: torch.dtype) -> str:
    """The implementation of a linear layer: on a GPU PyTorch's own (cuBLASLt adds the bias in its epilogue)."""
    if is_forced_to_reference("linear") or device.type != "cpu":
        return "reference"
    return "onednn" if has_onednn(dtype) else "reference"


def sample(device: torch.device) -> str:
    """The implementation of drawing pieces from softmax(logits / tau): the kernel keeps no table of logits."""
    if device.type != "cuda" or is_forced_to_reference("sample"):
        return "reference"
    return "triton" if has_triton(device) else "reference"


def select(device: torch.device) -> str:
    """The implementation of a running choice of the k highest scores."""
    return "cpu" if device.type == "cpu" and not is_forced_to_reference("select") and compiled() else "reference"


@cache
def compiled() -> bool:
    """Whether the C++ kernels are there."""
    return why_not_compiled() == ""


@cache
def why_not_compiled() -> str:
    """The reason why the C++ kernels are not there, '' where they are."""
    try:
        library()
    except NotBuiltError as error:
        return str(error)
    return ""


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether PyTorch has oneDNN's product with an epilogue and with packed weights for this dtype."""
    wanted = ("_linear_pointwise", "_reorder_linear_weight")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in wanted):
        return False
    if dtype != torch.bfloat16 or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return dtype == torch.float32
    try:  # "supported" is a product on AVX2; packing its weight takes AVX-512
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), 16)
    except RuntimeError:
        return False
    return True


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton is installed and the GPU an A100 or later."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def varlen_takes(dtype: torch.dtype, width: int, capability: tuple[int, int]) -> bool:
    """Whether PyTorch's variable-length flash attention runs: half precision, a head `width` that is a multiple of 8 and at most
    256, and compute `capability` 8.0 (A100) or later."""
    return dtype in HALVES and width in FLASH_WIDTHS and capability >= (8, 0)


def report(device: torch.device, dtype: torch.dtype, head_width: int, dropout: bool) -> str:
    """One line for the start of a run: what serves each operation, and why a kernel is missing."""
    of_attention = attention(device, dtype, head_width, dropout)
    chosen = (
        f"attention {of_attention}, add_norm {add_norm(device, dtype)}, linear {linear(device, dtype)}, "
        f"sample {sample(device)}, select {select(device)}"
    )
    why = ""
    if device.type == "cpu" and why_not_compiled() and not is_forced_to_reference("attention"):
        why = f" (no C++ kernels: {why_not_compiled()})"
    if device.type == "cuda" and not has_triton(device):
        why = " (no Triton kernels: triton is not installed, or the GPU is older than an A100)"
    return f"kernels: {chosen}{why}"
