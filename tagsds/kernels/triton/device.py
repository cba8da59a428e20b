"""What every launch asks of the device."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from tagsds.kernels.dropout import threshold


def on(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes the GPU of `x` the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def processors(x: Tensor) -> int:
    """Streaming multiprocessors of the GPU of `x`; 2 in the interpreter."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: float32 products follow torch.set_float32_matmul_precision, as cuBLAS does."""
    return "ieee" if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else "tf32"


def drop_settings(dropout: float) -> dict[str, float]:
    """Compile-time constants of a kernel with dropout: `threshold` 0 compiles it away."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and less than 1, not {dropout}")
    return {"threshold": threshold(dropout), "keep_scale": 1 / (1 - dropout)}
