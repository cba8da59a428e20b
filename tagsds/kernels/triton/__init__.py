"""Triton kernels for NVIDIA GPUs of compute capability 8.0 (A100) and later. Each module imports triton: ask `runs_on` first.

`TRITON_INTERPRET=1`, set before triton is imported, runs the same kernels on CPU tensors, slowly: the tests do so.
What each kernel is for, and what was left to a library: docs/kernels.md.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(x: Tensor) -> bool:
    """Whether the kernels of this package take tensors on the device of `x`."""
    if not installed():
        return False
    if interpreted():
        return not x.is_cuda
    return x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0)
