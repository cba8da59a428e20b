"""The shards that a manifest names: held against it, and read as raw samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import webdataset

from tagsds.errors import UserError
from tagsds.files import sha256_of


def check_shard(folder: Path, shard: dict[str, Any], checksum: bool = True) -> Path:
    """The shard's path, once its size and sha256 agree with the manifest."""
    path = folder / shard["file"]
    if not path.is_file():
        raise UserError(f"{path} is named in the manifest but missing; copy it again or run tagsds-pack again.")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise UserError(f"{path} has {size} bytes where the manifest says {shard['bytes']} (truncated?); copy it again.")
    if checksum:
        found = sha256_of(path)
        if found != shard["sha256"]:
            raise UserError(f"{path} has another sha256 ({found[:12]}...) than the manifest says; copy it again.")
    return path


def read_samples(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Raw samples ({'__key__', 'regions.npy': bytes, ...}) in the order of the shards."""
    urls = [str(path) for path in paths]
    yield from webdataset.DataPipeline(webdataset.SimpleShardList(urls), webdataset.tarfile_to_samples())
