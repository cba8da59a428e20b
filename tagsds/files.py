"""Files that are whole or not there, their checksums, and readers that answer any damage with one sentence (UserError)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from tagsds.errors import UserError, first_line

CHECKSUMS = "checksums.json"
REWRITTEN = ("README.md", "card.json")  # the model card, which gains a row with each evaluation
LARGE_BYTES = 16 << 20
LARGEST_JSON = 1 << 30  # bytes
AGAIN = "correct it, or copy it again"


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


def check_writable(output: Path, folder: bool = True) -> None:
    """UserError where `output` (of the option --output) cannot be made later, asked before long work begins: the nearest folder
    above it that exists must be open, and a file must not bear the name of a folder."""
    if not folder and output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file in it.")
    place = output.absolute()
    while not place.exists() or (not folder and place == output.absolute()):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} is no folder that can be written, so {output} cannot be made; name another --output.")


def check_exist(paths: Iterable[Path]) -> None:
    """UserError for the first file that is not there."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist; check the path.")


def write_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write `checksums.json`: size and sha256 of the named files (relative paths), or of all files below `folder` except those that
    are rewritten later (`REWRITTEN`)."""
    if names is None:
        found = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        names = [name for name in found if name not in (CHECKSUMS, *REWRITTEN)]
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    write_json(folder / CHECKSUMS, {"format": "tagsds-checksums", "version": 1, "files": files})


def check_checksums(folder: Path, remedy: str, large: bool = True) -> bool:
    """Hold a folder against its `checksums.json`. UserError for the first file that is missing, of another size or changed; the
    sentence ends with `remedy`. Further files are allowed.

    large    False: of files above LARGE_BYTES only the size is compared, for a check before long work
    returns  False where the folder has no checksums.json: it is older, or another program's
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return False
    listed = read_json_object(path, remedy)
    files = listed.get("files")
    if (listed.get("format"), listed.get("version")) != ("tagsds-checksums", 1) or not isinstance(files, dict) or not files:
        raise UserError(f"{path} lists no checksums of version 1; {remedy}.")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys() or ".." in Path(name).parts:
            raise UserError(f"{path} has no size and sha256 of '{name[:80]}'; {remedy}.")
        check_file(folder / name, CHECKSUMS, remedy, entry["sha256"], entry["bytes"], large)
    return True


def check_file(path: Path, listed_in: str, remedy: str, sha256: Any, size: Any = None, large: bool = True) -> None:
    """UserError unless the file is there with this sha256 (hex) and, where it is given, this size in bytes. `large` as in
    `check_checksums`."""
    if not is_file(path):
        raise UserError(f"{path} is named in {listed_in} but missing; {remedy}.")
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{path} has {found} bytes where {listed_in} says {size}; {remedy}.")
    if (large or found <= LARGE_BYTES) and sha256_of(path) != sha256:
        raise UserError(f"{path} has another sha256 than {listed_in} says; {remedy}.")


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, remedy: str = AGAIN, most: int = LARGEST_JSON) -> bytes:
    """All bytes of a file. UserError where it is missing, cannot be read, or has more than `most` bytes."""
    if not is_file(path):
        raise UserError(f"{path} does not exist; check the path.")
    try:
        if path.stat().st_size > most:
            raise UserError(f"{path} has {path.stat().st_size} bytes, where at most {most} are expected; {remedy}.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or first_line(error)}); check its permissions.") from error


def read_text(path: Path, remedy: str = AGAIN) -> str:
    """A UTF-8 text."""
    try:
        return read_bytes(path, remedy).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); {remedy}.") from error


def parse_json(data: bytes | str, where: object, remedy: str = AGAIN) -> Any:
    """The value of a JSON text. UserError, which begins with `where`, for anything else: bytes that are no UTF-8, a text cut short,
    values nested too deeply, halves of surrogate pairs, NaN and infinities."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, parse_constant=_no_number)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a pair decodes to a string that cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({first_line(error)}); {remedy}.") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def read_json(path: Path, remedy: str = AGAIN) -> Any:
    """What a JSON file of the user's holds. UserError where there is none, or it is damaged."""
    return parse_json(read_bytes(path, remedy), path, remedy)


def read_json_object(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """The same where only an object will do, such as a config."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not an object; {remedy}.")
    return value


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an npy file, from its header. ValueError for whatever is no header."""
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    except Exception as error:  # the header is a Python literal: SyntaxError, RecursionError, MemoryError, EOFError and more
        raise ValueError(first_line(error)) from error
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype


def parse_npy(data: bytes) -> np.ndarray:
    """The array of an npy file's bytes, a view of them (read-only). The header's shape must agree with the number of bytes, so that
    no header can ask for more memory than the file has. ValueError for anything else, Python objects among it."""
    stream = BytesIO(data)
    shape, fortran, dtype = npy_header(stream)
    check_npy_size(shape, dtype, len(data) - stream.tell())
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def check_npy_size(shape: tuple[int, ...], dtype: np.dtype, left: int) -> None:
    """ValueError unless an array of this shape fills the `left` bytes behind the header."""
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"dtype {dtype}")
    if prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{left} bytes for an array {dtype} {list(shape)}")


def map_npy(path: Path, dtype: type, shape: tuple[int, ...], remedy: str) -> np.ndarray:
    """The array of an npy file, mapped copy-on-write: a write goes to a private copy of the page. UserError unless the file holds
    exactly an array of this dtype and shape."""
    if not is_file(path):
        raise UserError(f"{path} is missing; {remedy}.")
    try:
        with open(path, "rb") as stream:
            found, fortran, kind = npy_header(stream)
            begin = stream.tell()
        check_npy_size(found, kind, path.stat().st_size - begin)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no whole npy array ({first_line(error)}); {remedy}.") from error
    if kind != dtype or found != shape or (fortran and len(shape) > 1):
        raise UserError(f"{path} is {kind} {list(found)}, not {np.dtype(dtype)} {list(shape)}; {remedy}.")
    if 0 in shape:  # nothing can be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "c", begin, shape)


def join_npy(path: Path, parts: Iterable[tuple[Path, int]], width: int, dtype: type, remedy: str) -> None:
    """One npy array [rows of all parts, width] from files with so many rows each, in order, a part in memory at a time. UserError
    for a part that is not such an array."""
    parts = list(parts)
    temporary = path.with_name(path.name + ".tmp")
    table = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=(sum(rows for _, rows in parts), width))
    start = 0
    for part, rows in parts:
        table[start : start + rows] = map_npy(part, dtype, (rows, width), remedy)
        start += rows
    table.flush()
    del table
    os.replace(temporary, path)
