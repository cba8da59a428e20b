"""What `manifest.json` says of a packed corpus, and the shards that it names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import webdataset

from tagsds.errors import UserError, nearest
from tagsds.files import sha256_of

UNITER_CLASSES = 1601  # Visual Genome's 1,600 objects after the background


@dataclass
class Manifest:
    """`manifest.json` of a packed corpus; the contract is in preprocess/README.md."""

    folder: Path
    feature_dim: int
    num_classes: int
    class_names: list[str]
    vocab_size: int
    max_regions: int
    max_caption_pieces: int
    splits: dict[str, Any]
    boxes: bool = True  # False: no sample has boxes.npy
    background_class: bool = False  # True: column 0 of the soft labels is the background
    made_by: dict[str, Any] = field(default_factory=dict)  # source, arguments, version of the packer

    def shards(self, split: str) -> list[dict[str, Any]]:
        """The split's shards in order, each {file, samples, captions, regions, bytes, sha256}."""
        if split not in self.splits:
            raise UserError(f"{self.folder / 'manifest.json'} has no split '{split}': {nearest(split, self.splits)}")
        return self.splits[split]["shards"]

    def caption_pieces(self, split: str) -> int:
        """Most word pieces of a caption of the split, with [CLS] and [SEP]; of the corpus where an older manifest says no more."""
        return self.splits.get(split, {}).get("max_caption_pieces", self.max_caption_pieces)


def read_manifest(folder: Path | str) -> Manifest:
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make the shards with `tagsds-pack SOURCE ... --out {folder}`.")
    try:
        raw = json.loads(path.read_text())
        fields = {name: f for name, f in Manifest.__dataclass_fields__.items() if name != "folder"}
        needed = [name for name, f in fields.items() if f.default is MISSING and f.default_factory is MISSING]
        manifest = Manifest(Path(folder), **{name: raw[name] for name in fields if name in needed or name in raw})
        if "background_class" not in raw:  # packed before manifests said it
            manifest.background_class = manifest.num_classes == UNITER_CLASSES
        return manifest
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of tagsds-pack ({error}); pack the corpus again.") from error


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
