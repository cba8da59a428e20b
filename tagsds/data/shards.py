"""Shards -> bank, through the cache of their tables or directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tagsds.data.bank import Bank
from tagsds.data.cache import Cache
from tagsds.data.reading import read_tables
from tagsds.data.shard_files import check_shard, read_samples
from tagsds.formats.manifest import Manifest, read_manifest

__all__ = ["check_shard", "load_bank", "load_shards", "read_samples"]


def load_bank(
    folder: Path | str,
    split: str,
    first: int | None = None,
    checksum: bool = True,
    progress: bool = False,
    classes: bool = True,
    cache: str = "",
) -> tuple[Bank, Manifest]:
    """All images of a split (or the first N), in the order of the split, with all their captions. `cache` as in DataConfig."""
    manifest = read_manifest(folder)
    shards, taken = [], 0
    for shard in manifest.shards(split):
        if first is None or taken < first:
            shards.append(shard)
            taken += shard["samples"]
    return load_shards(manifest, shards, first, checksum, progress, classes, cache), manifest


def load_shards(
    manifest: Manifest,
    shards: list[dict[str, Any]],
    first: int | None = None,
    checksum: bool = True,
    progress: bool = False,
    classes: bool = True,
    cache: str = "none",
    device: torch.device | str = "cpu",
) -> Bank:
    """A bank of the given shards, without the soft labels unless `classes`. Without a cache, peak memory is the bank's own.

    With a cache (`cache` as in DataConfig) the tables are views of mapped files, which the processes of a node share; several
    shards that are not a whole split are joined, and the features, boxes and soft labels go to `device` without a copy on the
    host.
    """
    tables = None
    if cache != "none":
        tables = Cache(manifest, cache, checksum, classes, progress).tables(shards, first, device)
    if tables is None:
        tables = read_tables(manifest, shards, first, checksum, progress, classes)
    return tables.bank(manifest.background_class)
