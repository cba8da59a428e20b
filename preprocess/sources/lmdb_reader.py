"""LMDB folders opened read-only, and their values decoded without running anything that they hold.

Values seen in published files: msgpack with arrays in msgpack-numpy's layout (a map with nd, type, kind, shape and data),
npz, and msgpack inside an lz4 frame. Object arrays are pickles in both array layouts and are refused.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tagsds.errors import UserError

PLAIN_DTYPE = re.compile(r"^[<>|=]?[biuf]\d{1,2}$")  # numbers and truth values only
SMALLEST_FILE = 2 * 4096  # bytes: the two header pages
PICKLE_PROTOCOLS = (2, 3, 4, 5)


class RefusedError(Exception):
    """A value that is damaged or could run code; the caller names file and key."""


def need(module: str) -> Any:
    """A module of the extra `lmdb`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(f"reading UNITER's LMDB needs the package {package}; run pip install 'tagsds[lmdb]'.") from error


class Database:
    """One LMDB folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "data.mdb"
        self._lmdb = need("lmdb")
        if not self.file.is_file():
            raise UserError(f"{self.file} does not exist; give the folder that holds data.mdb.")
        size = self.file.stat().st_size
        if size < SMALLEST_FILE:
            raise UserError(f"{self.file} is cut short: {size} bytes hold no LMDB; copy it again.")
        try:
            self._env = self._lmdb.open(str(folder), readonly=True, lock=False, create=False)  # values are many pages: read ahead
            needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        except self._lmdb.Error as error:
            raise UserError(f"{self.file} is no LMDB that can be read ({error}); copy it again.") from error
        if size < needed:  # reading a page behind the end of the file would kill the process
            self.close()
            raise UserError(f"{self.file} is cut short: {size} bytes where its header says {needed}; copy it again.")

    def get(self, key: str) -> bytes | None:
        """The value of a key."""
        try:
            with self._env.begin() as transaction:
                return transaction.get(key.encode())
        except self._lmdb.Error as error:
            raise UserError(f"{self.file}: key {key} cannot be read ({error}); copy the file again.") from error

    def has(self, key: str) -> bool:
        """Whether the key is there; its value is not read."""
        try:
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                return cursor.set_key(key.encode())
        except self._lmdb.Error as error:
            raise UserError(f"{self.file}: key {key} cannot be read ({error}); copy the file again.") from error

    def close(self) -> None:
        self._env.close()


_open: dict[tuple[int, Path], Database] = {}  # by process: LMDB must not be carried over a fork


def database(folder: Path) -> Database:
    """The process's own handle on a folder, opened at the first call."""
    place = (os.getpid(), folder)
    if place not in _open:
        _open[place] = Database(folder)
    return _open[place]


def close_all() -> None:
    """Close what this process has opened, before it forks."""
    for place in [place for place in _open if place[0] == os.getpid()]:
        _open.pop(place).close()


def decode_text(value: bytes) -> dict[str, Any]:
    """A txt_db value: an lz4 frame around a msgpack map."""
    frame = need("lz4.frame")
    _refuse_pickle(value)
    try:
        plain = frame.decompress(value)
    except RuntimeError as error:
        raise RefusedError(f"is no whole lz4 frame ({error})") from error
    return _map(_unpack(plain))


def decode_arrays(value: bytes, names: tuple[str, ...]) -> dict[str, NDArray]:
    """An img_db value, npz or msgpack: those of the named arrays that it holds."""
    if value[:2] == b"PK":
        return _from_npz(value, names)
    _refuse_pickle(value)
    found = _map(_unpack(value))
    for name in names:
        if name in found and not isinstance(found[name], np.ndarray):
            raise RefusedError(f"holds no array under '{name}'")
    return {name: found[name] for name in names if name in found}


def _refuse_pickle(value: bytes) -> None:
    if len(value) > 2 and value[0] == 0x80 and value[1] in PICKLE_PROTOCOLS:
        raise RefusedError("is a pickle, which could run code and is not read")


def _from_npz(value: bytes, names: tuple[str, ...]) -> dict[str, NDArray]:
    """Members that were not asked for stay unread: UNITER's own files hold a stray `allow_pickle`."""
    try:
        with np.load(io.BytesIO(value), allow_pickle=False) as archive:
            return {name: archive[name] for name in names if name in archive.files}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise RefusedError("holds a pickled array, which could run code and is not read") from error
        raise RefusedError(f"is no whole npz ({error})") from error


def _unpack(plain: bytes) -> Any:
    msgpack = need("msgpack")
    try:
        return msgpack.unpackb(plain, object_hook=_as_array, raw=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise RefusedError(f"is no msgpack that can be read ({str(error) or type(error).__name__})") from error


def _map(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RefusedError("holds no map of names to values")
    return {key.decode("ascii", "replace") if isinstance(key, bytes) else str(key): entry for key, entry in found.items()}


def _as_array(entry: dict) -> Any:
    """msgpack-numpy's map of an array or a number as numpy; any other map as it is."""
    fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in entry.items()}
    if "nd" not in fields or "data" not in fields:
        return entry
    kind, dtype, data = fields.get("kind", b""), fields.get("type"), fields["data"]
    if kind in (b"O", "O") or "O" in str(dtype):
        raise RefusedError("holds a pickled array, which could run code and is not read")
    dtype = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if not isinstance(dtype, str) or not PLAIN_DTYPE.match(dtype) or not isinstance(data, bytes):
        raise RefusedError(f"holds an array of type {dtype!r}, which is no plain number")
    shape = tuple(fields.get("shape", ())) if fields["nd"] is True else ()
    try:
        flat = np.frombuffer(data, dtype=np.dtype(dtype))
    except (ValueError, TypeError) as error:
        raise RefusedError(f"holds a damaged array ({error})") from error
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) != len(flat):
        raise RefusedError(f"holds an array of {len(flat)} numbers that says it has shape {list(shape)}")
    return flat.reshape(shape)
