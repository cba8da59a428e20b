"""One short text for the contents of a value."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from torch import Tensor


def digest(value: Any) -> str:
    """Of a value's contents: equal for equal values. Floats by their bits."""
    found = hashlib.sha256()
    for part in parts_of(value):
        found.update(part)
    return found.hexdigest()[:24]


def parts_of(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{list(value.shape)}".encode() + value.detach().contiguous().numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        yield from parts_of({name: one for name, one in vars(value).items() if name not in ("folder", "file")})
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield str(key).encode("utf-8", "surrogatepass") + b":"
            yield from parts_of(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from parts_of(one)
            yield b","
    else:
        yield repr(value).encode("utf-8", "surrogatepass")
