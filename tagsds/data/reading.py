"""Shards -> tables: checked against the manifest, tokenised once, spans turned from characters into word-piece positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from tagsds.data.ragged import Ragged
from tagsds.data.samples import arrays_of, captions_of
from tagsds.data.shard_files import AGAIN, check_shard, read_samples
from tagsds.data.tables import LAYOUT, OF_REGIONS, Tables, encoded
from tagsds.data.vocabulary import corpus_tokenizer
from tagsds.errors import UserError, first_line
from tagsds.formats.manifest import Manifest


def read_tables(
    manifest: Manifest, shards: list[dict[str, Any]], first: int | None, checksum: bool, progress: bool, classes: bool
) -> Tables:
    """The shards (or their first images) in memory."""
    for shard in shards:
        check_shard(manifest.folder, shard, checksum=False)  # before memory is taken for what the manifest counts
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
    tokenizer = corpus_tokenizer(manifest)
    left = sum(shard["samples"] for shard in shards) if first is None else first
    seen: set[str] = set()
    with tqdm(total=left, desc="load", unit="image", disable=not progress, leave=False) as bar:
        for shard in shards:
            path = check_shard(manifest.folder, shard, checksum)
            keys: list[str] = []
            captions: list[dict[str, Any]] = []
            region_lengths, caption_lengths = [], []
            for sample in read_samples([path]):
                if first is not None and left == 0:
                    break
                key, where = sample["__key__"], f"{path}, sample {sample['__key__']}"
                if key in seen:
                    raise UserError(f"{where} is in the corpus twice; {AGAIN}.")
                seen.add(key)
                arrays = arrays_of(sample, where, manifest, columns)
                own = captions_of(sample, where, len(tokenizer))
                for name, array in arrays.items():
                    columns[name].add(array)
                captions.extend(own)
                caption_lengths.append(len(own))
                region_lengths.append(len(arrays["regions"]))
                keys.append(key)
                left -= 1
                bar.update()
            if first is None or left > 0:  # else the shard was not read to its end
                for name, found in (("samples", len(keys)), ("captions", len(captions)), ("regions", sum(region_lengths))):
                    if found != shard[name]:
                        raise UserError(f"{path} holds {found} {name} where the manifest says {shard[name]}; {AGAIN}.")
            texts = [caption["text"] for caption in captions]
            spans, imported = [caption.get("spans", []) for caption in captions], [caption.get("ids") for caption in captions]
            try:
                tokens, span_rows = tokenize(tokenizer, texts, spans, imported)
            except Exception as error:  # the tokenizers library raises plain Exceptions
                raise UserError(f"{manifest.folder / 'tokenizer'} fails on {path} ({first_line(error)}); {AGAIN}.") from error
            check_tokens(tokens, len(tokenizer), manifest)
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


def check_tokens(tokens: Ragged, pieces: int, manifest: Manifest) -> None:
    """UserError for a piece that the tokenizer lacks, or a caption longer than the manifest's longest."""
    if tokens.values.numel() and not 0 <= int(tokens.values.min()) <= int(tokens.values.max()) < pieces:
        found = int(tokens.values.max())
        raise UserError(f"{manifest.folder}: a caption holds piece {found}, the tokenizer has {pieces}; pack the corpus again.")
    if len(tokens) and int(tokens.lengths.max()) > manifest.max_caption_pieces:
        raise UserError(
            f"{manifest.folder}: a caption has {int(tokens.lengths.max())} word pieces, manifest.json says max_caption_pieces "
            f"{manifest.max_caption_pieces}; pack the corpus again."
        )


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
