"""Shards -> bank: checked against the manifest, tokenised once, spans turned from characters into word-piece positions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from tqdm import tqdm

from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import load_tokenizer
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.formats.manifest import Manifest, read_manifest


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


def load_bank(
    folder: Path | str,
    split: str,
    first: int | None = None,
    checksum: bool = True,
    progress: bool = False,
    classes: bool = True,
) -> tuple[Bank, Manifest]:
    """All images of a split (or the first N), in the order of the split, with all their captions."""
    manifest = read_manifest(folder)
    shards, taken = [], 0
    for shard in manifest.shards(split):
        if first is None or taken < first:
            shards.append(shard)
            taken += shard["samples"]
    return load_shards(manifest, shards, first, checksum, progress, classes), manifest


def load_shards(
    manifest: Manifest,
    shards: list[dict[str, Any]],
    first: int | None = None,
    checksum: bool = True,
    progress: bool = False,
    classes: bool = True,
) -> Bank:
    """A bank of the given shards, without the soft labels unless `classes`. Peak memory is the bank's own.

    Without boxes in the manifest, every region gets the whole image as its box: all have the same place, which weights
    trained with boxes know. Zeros would not do: a fresh box branch has no bias, and the LayerNorm of a zero vector multiplies
    gradients by 1 / sqrt(eps), a million.
    """
    tokenizer = load_tokenizer(manifest.folder / "tokenizer")
    expected = sum(shard["regions"] for shard in shards)
    regions = _Rows(expected, manifest.feature_dim, torch.float16)
    boxes = _Rows(expected, 4 if manifest.boxes else 0, torch.float32)
    labels = _Rows(expected, manifest.num_classes if classes else 0, torch.float16)
    lengths: list[int] = []
    keys: list[str] = []
    texts: list[str] = []
    caption_ids: list[str] = []
    spans: list[list[dict[str, Any]]] = []
    imported: list[list[int] | None] = []  # word pieces where the source had them
    image_of_caption: list[int] = []
    bar = tqdm(total=sum(s["samples"] for s in shards), desc="load", unit="image", disable=not progress, leave=False)
    for shard in shards:
        path = check_shard(manifest.folder, shard, checksum)
        for sample in read_samples([path]):
            if first is not None and len(keys) >= first:
                break
            key = sample["__key__"]
            array = _npy(sample, "regions.npy", path)
            if not np.isfinite(array).all():
                raise UserError(f"{path}, sample {key}: regions.npy holds NaN or infinity; extract this image again.")
            if array.ndim != 2 or array.shape[1] != manifest.feature_dim or len(array) == 0:
                raise UserError(
                    f"{path}, sample {key}: regions.npy has shape {array.shape}, not [n > 0, {manifest.feature_dim}]."
                )
            for caption in json.loads(_member(sample, "captions.json", path)):
                texts.append(caption["text"])
                caption_ids.append(str(caption.get("id", "")))
                spans.append(caption.get("spans", []))
                imported.append(caption.get("ids"))
                image_of_caption.append(len(keys))
            regions.add(array)
            lengths.append(len(array))
            for name, rows in (("boxes.npy", boxes), ("classes.npy", labels)):
                if rows.width:
                    part = _npy(sample, name, path)
                    if part.shape != (len(array), rows.width) or not np.isfinite(part).all():
                        wanted = f"[{len(array)}, {rows.width}] finite numbers"
                        raise UserError(f"{path}, sample {key}: {name} is not {wanted}; pack the corpus again.")
                    rows.add(part)
            keys.append(key)
            bar.update()
    bar.close()
    tokens, span_rows = tokenize(tokenizer, texts, spans, imported)
    if tokens.values.numel() and int(tokens.values.max()) >= len(tokenizer):
        raise UserError(f"{manifest.folder}: a caption holds piece {int(tokens.values.max())}, the tokenizer has "
                        f"{len(tokenizer)}; pack the corpus again.")
    owner = torch.tensor(image_of_caption, dtype=torch.int64)
    order = torch.argsort(owner, stable=True)
    return Bank(
        tokens=tokens,
        spans=span_rows,
        image_of_caption=owner,
        captions_of_image=Ragged(order, torch.bincount(owner, minlength=len(keys))),
        regions=Ragged(regions.rows(), torch.tensor(lengths)),
        boxes=boxes.rows() if boxes.width else torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(regions.count, 1),
        classes=labels.rows() if labels.width else None,
        texts=texts,
        keys=keys,
        background_class=manifest.background_class,
        caption_ids=caption_ids,
    )


class _Rows:
    """A growing table [rows, width] that is filled in place, so that a corpus is never held twice."""

    def __init__(self, expected: int, width: int, dtype: torch.dtype) -> None:
        self.width = width
        self.table = torch.empty(expected, width, dtype=dtype)
        self.count = 0

    def add(self, part: np.ndarray) -> None:
        end = self.count + len(part)
        if end > len(self.table):
            more = self.table.new_empty(max(end, 2 * len(self.table)) - len(self.table), self.width)
            self.table = torch.cat([self.table, more])
        self.table[self.count : end] = torch.from_numpy(part)
        self.count = end

    def rows(self) -> torch.Tensor:
        return self.table[: self.count]


def tokenize(
    tokenizer, texts: list[str], spans: list[list[dict[str, Any]]], imported: list[list[int] | None] | None = None
) -> tuple[Ragged, Ragged]:
    """Word pieces int32 with [CLS] and [SEP], and spans as int32 (span number, position in the row).

    A caption that came as `imported` ids (without [CLS] and [SEP]) is not tokenised again; its spans give `pieces`.
    """
    imported = imported or [None] * len(texts)
    ends = tokenizer.cls_token_id, tokenizer.sep_token_id
    pieces: list[int] = []
    lengths, entries, entry_lengths = [], [], []
    for begin in range(0, len(texts), 20000):
        end = min(begin + 20000, len(texts))
        fresh = [i for i in range(begin, end) if imported[i] is None]
        batch = tokenizer([texts[i] for i in fresh], return_offsets_mapping=True) if fresh else {"input_ids": []}
        row_of = {i: row for row, i in enumerate(fresh)}
        for i in range(begin, end):
            given = imported[i]
            if given is not None:
                ids = [ends[0], *given, ends[1]]
                rows = [(number, 1 + piece) for number, span in enumerate(spans[i]) for piece in span["pieces"]]
            else:
                ids = batch["input_ids"][row_of[i]]
                rows = _rows_of_spans(spans[i], batch["offset_mapping"][row_of[i]])
            pieces.extend(ids)
            lengths.append(len(ids))
            entries.extend(rows)
            entry_lengths.append(len(rows))
    return (
        Ragged(torch.tensor(pieces, dtype=torch.int32), torch.tensor(lengths)),
        Ragged(torch.tensor(entries, dtype=torch.int32).view(-1, 2), torch.tensor(entry_lengths)),
    )


def _rows_of_spans(spans: list[dict[str, Any]], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(span number, position) of the pieces whose characters a span touches."""
    return [
        (number, position)
        for number, span in enumerate(spans)
        for position, (a, b) in enumerate(offsets)
        if b > a and any(a < end and b > start for start, end in span["chars"])
    ]


def _member(sample: dict[str, Any], name: str, path: Path) -> bytes:
    if name not in sample:
        raise UserError(f"{path}, sample {sample['__key__']}: {name} is missing; pack the corpus again.")
    return sample[name]


def _npy(sample: dict[str, Any], name: str, path: Path) -> np.ndarray:
    try:
        return np.load(BytesIO(_member(sample, name, path)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}, sample {sample['__key__']}: {name} is no whole npy array; pack the corpus again.") from error
