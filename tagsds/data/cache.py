"""The tables of a corpus as files that are mapped into memory: read, checked and tokenised once, then shared by all processes.

A unit is a folder `<cache>/<key>/` of npy files, one a table of LAYOUT, for a list of shards: a whole split where a rank keeps
all of it, one shard where it walks through windows. The key is a hash of the shards' sha256, the tokenizer's files, the widths
and the version of this format, so that another corpus has another key. `index.json`, written last, holds each file's shape, size,
time of change and sha256.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from tagsds.data.reading import columns_of, read_into
from tagsds.data.shard_files import check_shard
from tagsds.data.tables import Tables
from tagsds.errors import first_line
from tagsds.files import sha256_of, write_json
from tagsds.formats.manifest import Manifest

FORMAT = {"format": "tagsds-cache", "version": 1}
_said: set[str] = set()


class Cache:
    """Units of one corpus. `folder` is "" for `cache/` beside the shards, or a path."""

    def __init__(self, manifest: Manifest, folder: str, checksum: bool, classes: bool, progress: bool = False) -> None:
        self.manifest, self.checksum, self.progress = manifest, checksum, progress
        self.folder = Path(folder) if folder else manifest.folder / "cache"
        self.classes = classes and manifest.num_classes > 0
        self.tokenizer = _digest_of_files(manifest.folder / "tokenizer")
        self._mapped: dict[str, Tables] = {}  # units that have been checked
        self._place_of: dict[str, dict[str, int]] = {}
        self._of_split: dict[str, Tables | None] = {}

    def tables(self, shards: list[dict[str, Any]], first: int | None, device: torch.device | str) -> Tables | None:
        """Tables of the shards, or of their first images; what is missing is built. None: read the shards instead, since the
        folder cannot be written or only a part of the shards is wanted and no unit holds it.
        """
        found = self.from_split(shards)
        if found is None and first is not None and first < sum(shard["samples"] for shard in shards):
            found = self.stored(shards)
            if found is None:
                return None
        if found is None:
            units = [shards] if self.is_split(shards) else [[shard] for shard in shards]
            parts = []
            for unit in units:
                part = self.unit(unit)
                if part is None:
                    return None
                parts.append(part)
            found = Tables.join(parts, device)
        return found if first is None else found.images(0, first)

    def prepare(self, shards: list[dict[str, Any]]) -> None:
        """Build what is missing of single shards' units and bring their files into the page cache, which the kernel may drop
        again: the process holds no memory for it. What the unit of the whole split holds is left to the kernel."""
        for shard in shards:
            if self.unit([shard]) is None:
                _touch(self.manifest.folder / shard["file"])
            for file in (self.folder / self.key([shard])).glob("*.npy"):
                if file.stem != "classes" or self.classes:
                    _touch(file)

    def is_split(self, shards: list[dict[str, Any]]) -> bool:
        return any(part["shards"] == shards for part in self.manifest.splits.values())

    def unit(self, shards: list[dict[str, Any]]) -> Tables | None:
        """The shards as a unit: cut from that of their split, or their own, built where it is missing."""
        for find in (self.from_split, self.stored, self.built):
            found = find(shards)
            if found is not None:
                return found
        return None

    def from_split(self, shards: list[dict[str, Any]]) -> Tables | None:
        """The shards cut out of the unit of their split, where there is one and they follow each other in it."""
        for name, part in self.manifest.splits.items():
            begin = self._places(name).get(shards[0]["sha256"]) if shards else None
            if begin is not None:
                every = part["shards"]
                unit = self._unit_of_split(name) if every[begin : begin + len(shards)] == shards else None
                if unit is None:
                    return None
                return unit.images(*(sum(s["samples"] for s in every[:end]) for end in (begin, begin + len(shards))))
        return None

    def _places(self, split: str) -> dict[str, int]:
        """Where each shard stands in its split, by its sha256 (of equal shards the first): looked for once, since a window of a
        split of 100,000 shards asks for hundreds of them."""
        if split not in self._place_of:
            found = self._place_of[split] = {}
            for place, shard in enumerate(self.manifest.splits[split]["shards"]):
                found.setdefault(shard["sha256"], place)
        return self._place_of[split]

    def _unit_of_split(self, split: str) -> Tables | None:
        if split not in self._of_split:
            self._of_split[split] = self.stored(self.manifest.splits[split]["shards"])
        return self._of_split[split]

    # --- one unit ----------------------------------------------------------------------------------------------------

    def key(self, shards: list[dict[str, Any]]) -> str:
        shape = [self.manifest.feature_dim, self.manifest.num_classes, self.manifest.boxes]
        parts = [FORMAT, [shard["sha256"] for shard in shards], self.tokenizer, shape]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def stored(self, shards: list[dict[str, Any]]) -> Tables | None:
        """The mapped tables of a unit that is whole; None where there is none, or one that is damaged or not of these shards.

        Files whose size and time of change are those of the build are taken as they are; of others the checksum is computed.
        The same holds for the shards, where `checksum` is on.
        """
        key = self.key(shards)
        if key in self._mapped:
            return self._mapped[key]
        path = self.folder / key
        index = _read_index(path / "index.json")
        if index is None or index["shards"] != [shard["sha256"] for shard in shards] or index["tokenizer"] != self.tokenizer:
            return None
        columns = columns_of(self.manifest, self.classes)
        if not columns.keys() <= index["tables"].keys():
            return None
        changed = False
        for shard, entry in zip(shards, index["shard_times"], strict=True):
            source = check_shard(self.manifest.folder, shard, False)
            if self.checksum and source.stat().st_mtime_ns != entry[0]:
                check_shard(self.manifest.folder, shard, True)
                entry[0], changed = source.stat().st_mtime_ns, True
        found = {}
        try:
            for name, (dtype, row) in columns.items():
                about, file = index["tables"][name], path / f"{name}.npy"
                stat = file.stat()
                if stat.st_size != about["bytes"]:
                    return None
                if stat.st_mtime_ns != about["mtime_ns"]:
                    if sha256_of(file) != about["sha256"]:
                        return None
                    about["mtime_ns"], changed = stat.st_mtime_ns, True
                found[name] = _map(file, np.dtype(dtype), (about["rows"], *row))
        except (OSError, ValueError):
            return None
        if changed:
            try:
                _write_index(path / "index.json", index)
            except OSError:
                pass  # a folder that cannot be written is checked again at the next start
        self._mapped[key] = Tables(found)
        return self._mapped[key]

    def built(self, shards: list[dict[str, Any]]) -> Tables | None:
        """Build a unit, or wait for the process that does; None, after a sentence, where the folder cannot be written."""
        key = self.key(shards)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _lock(self.folder / f"{key}.lock"):
                found = self.stored(shards)
                if found is None:
                    self.build(self.folder / key, shards)
                    if len(shards) > 1:
                        self._of_split.clear()  # it may be the split's
                    found = self.stored(shards)
        except OSError as error:
            if str(self.folder) not in _said and os.environ.get("RANK", "0") == "0":
                why = error.strerror or first_line(error)
                print(f"{self.folder} cannot be written ({why}): the shards are read and tokenised in memory at every start; "
                      "data.cache=FOLDER names another place.", file=sys.stderr, flush=True)  # fmt: skip
            _said.add(str(self.folder))
            return None
        return found

    def build(self, path: Path, shards: list[dict[str, Any]]) -> None:
        """Write a unit aside and give it its name. Where locks do not reach, two may build at once: one of them stays."""
        for left in self.folder.glob(f"{path.name}.building.*"):
            if _is_left(left):
                shutil.rmtree(left, ignore_errors=True)
        aside = self.folder / f"{path.name}.building.{os.uname().nodename}.{os.getpid()}"
        aside.mkdir()
        try:
            columns = {
                name: _Stream(aside / f"{name}.npy", np.dtype(dtype), row)
                for name, (dtype, row) in columns_of(self.manifest, self.classes).items()
            }
            try:
                times = [[(self.manifest.folder / s["file"]).stat().st_mtime_ns if self.checksum else 0] for s in shards]
            except FileNotFoundError:
                times = []  # read_into says which
            try:
                read_into(columns, self.manifest, shards, None, self.checksum, self.progress)
            finally:
                for column in columns.values():
                    column.close()
            index = FORMAT | {
                "shards": [shard["sha256"] for shard in shards],
                "files": [shard["file"] for shard in shards],
                "shard_times": times,
                "tokenizer": self.tokenizer,
                "tables": {name: column.about() for name, column in columns.items()},
            }
            _write_index(aside / "index.json", index)
            if path.exists():  # damaged, or without the soft labels; who has it mapped keeps it
                old = aside.with_name(f"{aside.name}.old")
                os.replace(path, old)
                shutil.rmtree(old, ignore_errors=True)
            try:
                os.rename(aside, path)
            except OSError:
                if not path.is_dir():
                    raise  # else another node was faster
        finally:
            shutil.rmtree(aside, ignore_errors=True)


class _Stream:
    """A column that grows in an npy file. The header has room for the number of rows, which is known at the end."""

    def __init__(self, path: Path, dtype: np.dtype, row: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row, self.rows = path, dtype, row, 0
        self.stream = open(path, "wb")
        self._header()
        self.begin = self.stream.tell()

    def _header(self) -> None:
        descr = npy.dtype_to_descr(self.dtype)
        npy.write_array_header_1_0(self.stream, {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.row)})

    def add(self, part: np.ndarray) -> None:
        self.stream.write(np.ascontiguousarray(part, self.dtype).data if part.size else b"")
        self.rows += len(part)

    def close(self) -> None:
        if not self.stream.closed:
            self.stream.seek(0)
            self._header()
            if self.stream.tell() != self.begin:
                raise OSError(f"{self.path}: the header of {self.rows} rows has another length")
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()

    def about(self) -> dict[str, Any]:
        stat = self.path.stat()
        return {"rows": self.rows, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(self.path)}


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The array of an npy file as a tensor over its mapped pages. A write would go to a private copy of a page, never to the
    file. ValueError where the file holds another array. numpy's map would keep a file descriptor: a window of a few hundred shards,
    of a dozen files each, has more files than a process may hold open."""
    if 0 in shape:  # nothing can be mapped
        return torch.from_numpy(np.empty(shape, dtype))
    with open(path, "rb") as stream:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError(f"{path} is of another version of npy")
        found = npy.read_array_header_1_0(stream)
        begin = stream.tell()
    size = math.prod(shape) * dtype.itemsize
    if found != (shape, False, dtype) or path.stat().st_size < begin + size:
        raise ValueError(f"{path} holds {found}")
    pages = torch.from_file(str(path), shared=False, size=begin + size, dtype=torch.uint8)
    return pages[begin:].view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)


def _write_index(path: Path, index: dict[str, Any]) -> None:
    write_json(path, {**index, "check": _digest(index)})


def _read_index(path: Path) -> dict[str, Any] | None:
    """An index that is whole and of this format, else None."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        check = index.pop("check")
        return index if check == _digest(index) and FORMAT.items() <= index.items() else None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps({k: v for k, v in index.items() if k != "check"}, sort_keys=True).encode()).hexdigest()


def _digest_of_files(folder: Path) -> str:
    """Of the names and bytes of all files of a folder; of nothing where it is missing, which loading the tokenizer reports."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    return hashlib.sha256(json.dumps([[path.name, sha256_of(path)] for path in files]).encode()).hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time, and the next one when this one ends or dies. File systems without locks go without."""
    with open(path, "wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def _is_left(folder: Path) -> bool:
    """Whether the process that was building a folder is gone; of other nodes' processes nothing is known."""
    parts = folder.name.removesuffix(".old").rsplit(".", 1)
    if not parts[0].endswith(f".building.{os.uname().nodename}") or not parts[1].isdigit():
        return False
    return int(parts[1]) != os.getpid() and not Path(f"/proc/{parts[1]}").exists()


def _touch(path: Path) -> None:
    """Read a file, so that the kernel keeps its pages."""
    with open(path, "rb", buffering=0) as stream:
        block = bytearray(1 << 22)
        while stream.readinto(block):
            pass
