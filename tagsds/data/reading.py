"""Shards -> tables: checked against the manifest, tokenised once, spans turned from characters into word-piece positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from tagsds.data.ragged import Ragged
from tagsds.data.shard_files import check_shard, read_samples
from tagsds.data.tables import LAYOUT, OF_REGIONS, Tables, encoded
from tagsds.data.vocabulary import load_tokenizer
from tagsds.errors import UserError
from tagsds.formats.manifest import Manifest


def read_tables(
    manifest: Manifest, shards: list[dict[str, Any]], first: int | None, checksum: bool, progress: bool, classes: bool
) -> Tables:
    """The shards (or their first images) in memory."""
    regions = sum(shard["regions"] for shard in shards)
    columns = {
        name: InMemory(regions if name in OF_REGIONS else 0, dtype, row)
        for name, (dtype, row) in columns_of(manifest, classes).items()
    }
    read_into(columns, manifest, shards, first, checksum, progress)
    return Tables({name: column.rows() for name, column in columns.items()})


class Column(Protocol):
    """One growing table of LAYOUT."""

    def add(self, part: np.ndarray) -> None: ...


def columns_of(manifest: Manifest, classes: bool) -> dict[str, tuple[type, tuple[int, ...]]]:
    """dtype and shape of a row of each table that the corpus has."""
    rows: dict[str, tuple[int, ...]] = {"regions": (manifest.feature_dim,), "boxes": (4,), "spans": (2,)}
    rows["classes"] = (manifest.num_classes,)
    left_out = set() if manifest.boxes else {"boxes"}
    if not (classes and manifest.num_classes):
        left_out.add("classes")
    return {name: (dtype, rows.get(name, ())) for name, dtype in LAYOUT.items() if name not in left_out}


def read_into(
    columns: Mapping[str, Column], manifest: Manifest, shards: list[dict[str, Any]], first: int | None, checksum: bool,
    progress: bool,
) -> None:  # fmt: skip
    """Append the shards (or their first images) to the columns, shard by shard: one shard's captions are in memory at a time."""
    tokenizer = load_tokenizer(manifest.folder / "tokenizer")
    left = sum(shard["samples"] for shard in shards) if first is None else first
    bar = tqdm(total=left, desc="load", unit="image", disable=not progress, leave=False)
    for shard in shards:
        path = check_shard(manifest.folder, shard, checksum)
        keys: list[str] = []
        captions: list[dict[str, Any]] = []
        region_lengths, caption_lengths = [], []
        for sample in read_samples([path]):
            if first is not None and left == 0:
                break
            key = sample["__key__"]
            array = _npy(sample, "regions.npy", path)
            if not np.isfinite(array).all():
                raise UserError(f"{path}, sample {key}: regions.npy holds NaN or infinity; extract this image again.")
            if array.ndim != 2 or array.shape[1] != manifest.feature_dim or len(array) == 0:
                raise UserError(
                    f"{path}, sample {key}: regions.npy has shape {array.shape}, not [n > 0, {manifest.feature_dim}]."
                )
            own = json.loads(_member(sample, "captions.json", path))
            captions.extend(own)
            caption_lengths.append(len(own))
            columns["regions"].add(array)
            region_lengths.append(len(array))
            for name, width in (("boxes", 4), ("classes", manifest.num_classes)):
                if name in columns:
                    part = _npy(sample, f"{name}.npy", path)
                    if part.shape != (len(array), width) or not np.isfinite(part).all():
                        wanted = f"[{len(array)}, {width}] finite numbers"
                        raise UserError(f"{path}, sample {key}: {name}.npy is not {wanted}; pack the corpus again.")
                    columns[name].add(part)
            keys.append(key)
            left -= 1
            bar.update()
        texts = [caption["text"] for caption in captions]
        spans, imported = [caption.get("spans", []) for caption in captions], [caption.get("ids") for caption in captions]
        tokens, span_rows = tokenize(tokenizer, texts, spans, imported)
        if tokens.values.numel() and int(tokens.values.max()) >= len(tokenizer):
            raise UserError(f"{manifest.folder}: a caption holds piece {int(tokens.values.max())}, the tokenizer has "
                            f"{len(tokenizer)}; pack the corpus again.")
        strings = {"text": texts, "key": keys, "caption_id": [str(caption.get("id", "")) for caption in captions]}
        for name, ragged in (("token", tokens), ("span", span_rows)):
            columns[f"{name}s"].add(ragged.values.numpy())
            columns[f"{name}_lengths"].add(ragged.lengths.numpy())
        for name, values in strings.items():
            data, lengths = encoded(values)
            columns[f"{name}s"].add(data)
            columns[f"{name}_lengths"].add(lengths)
        columns["region_lengths"].add(np.array(region_lengths, np.int64))
        columns["caption_lengths"].add(np.array(caption_lengths, np.int64))
    bar.close()


class InMemory:
    """A column that is filled in place, so that a corpus is never held twice."""

    def __init__(self, expected: int, dtype: type, row: tuple[int, ...]) -> None:
        self.table: np.ndarray = np.empty((expected, *row), dtype)
        self.count = 0

    def add(self, part: np.ndarray) -> None:
        end = self.count + len(part)
        if end > len(self.table):
            more = np.empty((max(end, 2 * len(self.table)) - len(self.table), *self.table.shape[1:]), self.table.dtype)
            self.table = np.concatenate([self.table, more])
        self.table[self.count : end] = part
        self.count = end

    def rows(self) -> torch.Tensor:
        return torch.from_numpy(self.table[: self.count])


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
