"""The folder of offline candidates, as `tagsds-mine` and re-mining write it; `negatives.offline.Candidates.read` reads it.

captions_of_image.npy   int32 [I, Kc]   the hardest captions of each image but its own, hardest first; -1 behind a short row
images_of_caption.npy   int32 [C, Ki]   the hardest images of each caption likewise
candidates.json         what they are of, and their checksums; written last, so that a folder with it is whole
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tagsds.data.shards import Manifest
from tagsds.files import sha256_of, write_json, write_npy
from tagsds.negatives.offline import FORMAT, VERSION

TABLES = ("captions_of_image", "images_of_caption")


def join_tables(path: Path, parts: Iterable[Path], rows: int, width: int) -> None:
    """One table [rows, width] of the parts in order, a part in memory at a time."""
    temporary = path.with_name(path.name + ".tmp")
    table = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.int32, shape=(rows, width))
    start = 0
    for part in parts:
        block = np.load(part, allow_pickle=False)
        table[start : start + len(block)] = block
        start += len(block)
    assert start == rows, f"{path}: {start} of {rows} rows"
    table.flush()
    del table
    os.replace(temporary, path)


def write_manifest(folder: Path, data: Manifest, split: str, widths: tuple[int, int], about: dict[str, Any]) -> dict[str, Any]:
    """candidates.json of a folder whose tables are written. `about` holds at least checkpoint and checkpoint_sha256."""
    counts = data.splits[split]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "split": split,
        "images": counts["images"],
        "captions": counts["captions"],
        "captions_per_image": widths[0],
        "images_per_caption": widths[1],
        **about,
        "data_sha256": sha256_of(data.folder / "manifest.json"),
        "sha256": {f"{name}.npy": sha256_of(folder / f"{name}.npy") for name in TABLES},
    }
    write_json(folder / "candidates.json", manifest)
    return manifest


def write_candidates(
    folder: Path, data: Manifest, split: str, captions_of_image: np.ndarray, images_of_caption: np.ndarray, about: dict[str, Any]
) -> None:
    """A whole folder from tables in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(TABLES, (captions_of_image, images_of_caption), strict=True):
        write_npy(folder / f"{name}.npy", np.ascontiguousarray(table, dtype=np.int32))
    write_manifest(folder, data, split, (captions_of_image.shape[1], images_of_caption.shape[1]), about)
