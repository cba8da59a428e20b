"""The shards that a manifest names: held against it, and read as raw samples."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from webdataset.tariterators import group_by_keys

from tagsds.errors import UserError, first_line
from tagsds.files import check_file, is_file

AGAIN = "pack the corpus again, or copy the shard again"


def check_shard(folder: Path, shard: dict[str, Any], checksum: bool = True) -> Path:
    """The shard's path, once its size and sha256 agree with the manifest."""
    path = folder / shard["file"]
    if not is_file(path):
        raise UserError(f"{path} is named in the manifest but missing; copy it again or run tagsds-pack again.")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise UserError(f"{path} has {size} bytes where the manifest says {shard['bytes']} (truncated?); copy it again.")
    if checksum:
        check_file(path, "manifest.json", "copy it again", shard["sha256"])
    return path


LARGEST_NAME = 1 << 16  # bytes of a header that names the next member, or gives its times
BEFORE_MEMBERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Header(tarfile.TarInfo):
    """A member's header. One with a negative size would send the reader back for ever, a sparse file may be far larger than the tar
    that holds it, and memory is taken for as many bytes as a header of BEFORE_MEMBERS claims: none of that occurs in a shard."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        found = super().frombuf(buf, encoding, errors)
        large = found.type in BEFORE_MEMBERS and found.size > LARGEST_NAME
        if found.size < 0 or large or found.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"a member of {found.size} bytes and type {found.type!r}")
        return found


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each regular file in an uncompressed tar, in order. UserError for whatever is no such tar. Damage to a
    later header may end the tar early without an error: compare the counts."""
    for tar, info in _members(path):
        stream = tar.extractfile(info)
        yield info.name, stream.read() if stream is not None else b""


def places_of_members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Where the members of each sample lie: {key: {member: (first byte, bytes)}}, from the headers alone. UserError as of
    `read_members`."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for _, info in _members(path):
        key, _, member = info.name.partition(".")
        found.setdefault(key, {})[member] = info.offset_data, info.size
    return found


def _members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of a tar, each checked to lie within it."""
    try:
        total = path.stat().st_size
        with tarfile.open(path, "r:", tarinfo=_Header) as tar:
            for info in tar:
                if info.size < 0 or info.sparse is not None or (info.isreg() and info.offset_data + info.size > total):
                    raise tarfile.ReadError(f"member {info.name[:80]!r} has {info.size} bytes")
                if info.isreg():
                    yield tar, info
    except (GeneratorExit, UserError):
        raise
    except Exception as error:  # a broken header raises what its parser happens to raise
        raise UserError(f"{path} is no tar that can be read ({first_line(error)}); {AGAIN}.") from error


def read_samples(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Raw samples ({'__key__', 'regions.npy': bytes, ...}) in the order of the shards, grouped as WebDataset does it: the part of a
    member's name before the first full stop is the key. UserError for a damaged shard."""
    for path in paths:
        members = ({"fname": name, "data": data, "__url__": str(path)} for name, data in read_members(path))
        samples = group_by_keys(members)
        while True:
            try:
                sample = next(samples, None)
            except ValueError as error:  # a member that occurs twice in a sample
                raise UserError(f"{path} is damaged ({first_line(error)}); {AGAIN}.") from error
            if sample is None:
                break
            if not sample["__key__"].isprintable():
                raise UserError(f"{path} has a member whose name is no text; {AGAIN}.")
            yield sample
