"""Negatives as a member of the shards: a corpus whose samples hold what was written for their captions.

Every shard of the split is copied with `negatives.json` behind captions.json; the other splits, the tokenizer and the edits are
linked (copied where the disk cannot link). A shard takes its name once it is whole, and the manifest comes last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from tagsds.data.samples import NEGATIVES
from tagsds.data.shard_files import AGAIN, check_shard, read_samples
from tagsds.errors import UserError
from tagsds.files import atomic, parse_json, read_json_object, sha256_of, write_json
from tagsds.formats.manifest import Manifest, manifest_object
from tagsds.formats.shape import Count, Of, problem
from tagsds.negatives.written_files import read_part

OF_CAPTION = ("text", "score", "kind", "changes", "blind")  # what an entry says that its caption does not
NOTE = {"bytes": Count(), "sha256": Of(str)}


def write_shard(manifest: Manifest, shard: dict[str, Any], parts: Iterable[Path], folder: Path, note: Path) -> None:
    """Copy a shard with the negatives of its blocks, and note its size and checksum; nothing where that was done before."""
    target = folder / shard["file"]
    if note.is_file() and target.is_file():
        found = read_json_object(note, "remove it and run the command again")
        if problem(found, NOTE) is None and target.stat().st_size == found["bytes"] and sha256_of(target) == found["sha256"]:
            return
    rows = rows_of(parts)
    with atomic(target) as stream:
        tar = TarWriter(stream, encoder=False, mtime=0, user="tagsds", group="tagsds", mode=0o644)  # as tagsds-pack writes it
        for key, members in with_negatives(check_shard(manifest.folder, shard), rows):
            for name, data in members:
                tar.write({"__key__": key, name: data})  # a member a call, which keeps their order
        tar.close()
    if next(rows, None) is not None:
        raise UserError(f"{target}: more captions have negatives than the shard holds; remove {note.parent} and run again.")
    write_json(note, {"bytes": target.stat().st_size, "sha256": sha256_of(target)})


def rows_of(parts: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Of every caption of the blocks, in order: {"id", "score": s(I, T), "negatives": [...]}; a block in memory at a time."""
    for path in parts:
        part = read_part(path)
        entries = iter(part["entries"])
        for caption in part["captions"]:
            own = [{name: entry[name] for name in OF_CAPTION} for entry in islice(entries, caption["negatives"])]
            yield {"id": caption["id"], "score": caption["score"], "negatives": own}


def with_negatives(path: Path, rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Key and members of each sample of a shard, with a row a caption behind captions.json. UserError where a sample has none."""
    for sample in read_samples([path]):
        members = [(name, data) for name, data in sample.items() if not name.startswith("__") and name != NEGATIVES]
        places = [at for at, (name, _) in enumerate(members) if name == "captions.json"]
        where = f"{path}, sample {sample['__key__']}"
        captions = parse_json(members[places[0]][1], f"{where}: captions.json", AGAIN) if places else None
        if not isinstance(captions, list):
            raise UserError(f"{where} has no list of captions; {AGAIN}.")
        own = list(islice(rows, len(captions)))
        if len(own) < len(captions):
            raise UserError(f"{where} has captions for which nothing was written; remove the folder of parts and run again.")
        members.insert(places[0] + 1, (NEGATIVES, json.dumps(own, ensure_ascii=False).encode()))
        yield sample["__key__"], members


def finish_corpus(manifest: Manifest, split: str, folder: Path, notes: Iterable[Path], about: dict[str, Any]) -> None:
    """What stays as it is, then the manifest with the new sizes and checksums; `about` the negatives, for the manifest."""
    raw = manifest_object(manifest.folder)
    for shard, path in zip(raw["splits"][split]["shards"], notes, strict=True):
        shard |= read_json_object(path, "remove it and run the command again")
    for name, part in raw["splits"].items():
        for shard in part["shards"] if name != split else ():
            bring(check_shard(manifest.folder, shard, checksum=False), folder / shard["file"])
    for inner in ("tokenizer", "edits"):
        for path in sorted((manifest.folder / inner).rglob("*")):
            if path.is_file():
                bring(path, folder / path.relative_to(manifest.folder))
    raw["negatives"] = raw.get("negatives", {}) | {split: about}
    write_json(folder / "manifest.json", raw)


def bring(path: Path, target: Path) -> None:
    """A link to the file, or a copy of it; nothing where it is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or one without links
        with open(path, "rb") as source, atomic(target) as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
