"""Files that are whole or not there, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from tagsds.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open for writing beside `path`; the file takes its name only once it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # a dying worker of a killed run cannot collide
    with open(temporary, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """With a fixed layout."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_npy(path: Path, array: np.ndarray) -> None:
    """Without pickle."""
    with atomic(path) as stream:
        np.save(stream, array, allow_pickle=False)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_exist(paths: Iterable[Path]) -> None:
    """UserError for the first file that is not there."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist; check the path.")
