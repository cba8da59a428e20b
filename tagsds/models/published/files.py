"""Files of weights by others: read without running what is in them."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tagsds.errors import UserError, first_line
from tagsds.files import atomic

STATES = ("img", "txt", "cap")  # of a matcher, in the order of its list
WRAPPERS = ("model_state_dict", "state_dict", "model", "module")  # a training state around the weights
NUMPY = [np.dtype, *(getattr(np.dtypes, f"{name}DType") for name in ("Float64", "Float32", "Int64", "Int32"))]
_SCALAR = np.float64(0).__reduce__()[0]  # rebuilds one numpy number: a best recall that was saved beside the weights
HARMLESS: list[Any] = [
    argparse.Namespace,
    *NUMPY,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
]


@dataclass
class Published:
    """What a file holds. `tensors` by the file's own keys; a matcher's states as `img.KEY`, `txt.KEY` and, for the third
    of AOQ's VSRN, its captioner, `cap.KEY`. `options` are those of its training, where it has any."""

    path: Path
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    is_matcher: bool = False


def read_published(path: Path) -> Published:
    """A .pt / .pth / .bin / .tar file of torch.save, a .safetensors file, or a Hugging Face folder with one of them."""
    if path.is_dir():
        held = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not held:
            raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin; give the file of the weights itself.")
        path = held[0]
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file of weights, or a folder with one.")
    if path.suffix == ".safetensors":
        try:
            return Published(path, load_file(path))
        except Exception as error:  # the library raises its own kinds for a broken file
            raise UserError(f"{path} is no whole safetensors file ({first_line(error)}); copy it again.") from error
    published = unwrap(path, _load(path))
    size = path.stat().st_size
    for key, value in published.tensors.items():
        if value.numel() * value.element_size() > size:  # strides of zero stand for more values than the file has
            raise UserError(f"{key} in {path} claims {value.numel()} values, more than the file holds; copy it again.")
    return published


class _NoFurther(io.BufferedReader):
    """A file whose `read` takes no memory for bytes that it does not have, however many a damaged pickle asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def _load(path: Path) -> Any:
    """torch.load of tensors, containers, numbers and strings; anything else in the file is refused unread."""
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocol and the encoding, which is for strings that Python 2 wrote
            with _NoFurther(io.FileIO(path)) as stream:
                zipped = stream.peek(4)[:4] == b"PK\x03\x04"  # of today's layout: torch reads entries by their known sizes
                return torch.load(path if zipped else stream, map_location="cpu", weights_only=True, encoding="latin1")
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds more than weights ({named[1]}), which could run as code when read, and was not read; "
                "save its state dict alone, where you trust it."
            ) from error
        raise UserError(f"{path} is no whole file of torch.save (its pickle breaks off or is none); copy it again.") from error
    except Exception as error:  # RuntimeError, EOFError, OSError, zipfile's: a broken file has many
        raise UserError(f"{path} is no whole file of torch.save ({first_line(error)}); copy it again.") from error


def unwrap(path: Path, held: Any) -> Published:
    """The weights inside what training saved: {'model': [image half, text half], 'opt': ...} (AOQ's VSRN: a third state, of the
    captioner), a state dict, or one in a wrapper."""
    options: dict[str, Any] = {}
    if isinstance(held, dict) and not is_state(held):
        given = held.get("opt")
        options = vars(given) if isinstance(given, argparse.Namespace) else {}
        inner = next((held[name] for name in WRAPPERS if name in held), None)
        if inner is None:
            listed = ", ".join(map(str, list(held)[:6])) or "nothing"
            raise UserError(f"{path} holds {listed}, and no state dict under {', '.join(WRAPPERS)}; save the state dict alone.")
        held = inner
    if isinstance(held, list | tuple) and len(held) in (2, 3) and all(is_state(state) for state in held):
        states = zip(STATES, held)
        return Published(path, {f"{part}.{key}": v for part, state in states for key, v in state.items()}, options, True)
    if not is_state(held):
        raise UserError(f"{path} holds no state dict (found: {type(held).__name__}); save the state dict alone.")
    return Published(path, dict(held), options)


def is_state(held: Any) -> bool:
    """A dictionary of tensors by name, with one at least."""
    return isinstance(held, dict) and bool(held) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in held.items())


def write_published(path: Path, held: Any) -> None:
    """By torch.save; the file is there once it is whole."""
    with atomic(path) as stream:
        torch.save(held, stream)
