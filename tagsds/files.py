"""Files that are whole or not there, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from tagsds.errors import UserError, first_line


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open for writing beside `path`; the file takes its name only once it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a dying worker of a killed run cannot collide, nor a process with this number on another machine
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
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


def read_json(path: Path) -> Any:
    """What a JSON file of the user's holds. UserError where there is none, or it is cut short."""
    check_exist([path])
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}); correct it, or copy it again.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The same where only an object will do, such as a config."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not an object; check the path.")
    return value
