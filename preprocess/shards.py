"""Writing shards: deterministic tars, atomic files, checksums."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from typing import IO

import numpy as np
import webdataset

from preprocess.pieces import spell
from preprocess.records import Caption, ImageRecord, Span
from tagsds.errors import UserError

KEY_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
BOX_SLACK = 1e-4  # rounding that a fraction may show outside 0..1


@dataclass
class ShardEntry:
    """A shard's line in the manifest, and what the whole corpus needs to know of it."""

    file: str
    samples: int
    captions: int
    regions: int
    bytes: int
    sha256: str
    max_regions: int = 0  # these four go into totals, not into the shard's line
    max_pieces: int = 0
    dropped: int = 0  # captions
    truncated: int = 0  # captions

    def line(self) -> dict:
        """The shard's entry in manifest.json."""
        return {
            k: v for k, v in asdict(self).items() if k in ("file", "samples", "captions", "regions", "bytes", "sha256")
        }


def npy(array: np.ndarray) -> bytes:
    """An array in npy format, without pickle."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def check_record(record: ImageRecord, feature_dim: int, num_classes: int) -> None:
    """UserError with the file, the key and the remedy for what the contract does not allow."""
    where = f"{record.origin}: image {record.key}"
    if not record.key or not set(record.key) <= KEY_CHARACTERS:
        raise UserError(f"{where}: a key may hold letters, digits, '_' and '-' only; rename the image.")
    n = len(record.regions)
    if n == 0:
        raise UserError(f"{where} has no regions; use --empty-images whole or skip, or remove it from the split.")
    if record.regions.shape != (n, feature_dim):
        raise UserError(
            f"{where}: features have shape {list(record.regions.shape)}, not [{n}, {feature_dim}]; extract it again."
        )
    if record.boxes is not None and record.boxes.shape != (n, 4):
        raise UserError(f"{where}: boxes have shape {list(record.boxes.shape)} for {n} regions; extract it again.")
    for name, array in (("features", record.regions), ("boxes", record.boxes)):
        if array is not None and not np.isfinite(array.astype(np.float16)).all():
            row = int(np.argwhere(~np.isfinite(array.astype(np.float16)))[0][0])
            raise UserError(
                f"{where}: {name} of region {row} are NaN or too large for float16; extract the image again."
            )
    if record.boxes is not None and (record.boxes.min() < -BOX_SLACK or record.boxes.max() > 1 + BOX_SLACK):
        row = int(np.argwhere((record.boxes < -BOX_SLACK) | (record.boxes > 1 + BOX_SLACK))[0][0])
        raise UserError(f"{where}: box {row} lies outside the image; check that boxes and image size belong together.")
    if record.classes is not None and record.classes.shape != (n, num_classes):
        raise UserError(f"{where}: classes have shape {list(record.classes.shape)}, expected [{n}, {num_classes}].")
    if not record.captions:
        raise UserError(f"{where} has no captions; add them or remove it from the split.")


def encode_sample(record: ImageRecord) -> list[tuple[str, bytes]]:
    """Members of a sample in the contract's order."""
    members = [("regions.npy", npy(record.regions.astype(np.float16)))]
    if record.boxes is not None:
        members.append(("boxes.npy", npy(record.boxes.astype(np.float32).clip(0.0, 1.0))))
    if record.classes is not None:
        members.append(("classes.npy", npy(record.classes.astype(np.float16))))
    captions = [caption.as_json() for caption in record.captions]
    members.append(("captions.json", json.dumps(captions, ensure_ascii=False).encode()))
    if record.picture is not None:
        members.append((f"image.{record.picture_type}", record.picture))
    return members


class ShardWriter:
    """One tar whose bytes depend on its samples alone: no times, no users."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = webdataset.TarWriter(stream, encoder=False, mtime=0, user="tagsds", group="tagsds", mode=0o644)

    def write(self, record: ImageRecord) -> None:
        """Append a sample; one call a member, because TarWriter sorts the members of a call by name."""
        for name, payload in encode_sample(record):
            self._tar.write({"__key__": record.key, name: payload})

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        """End the archive; the stream stays open."""
        self._tar.close()


def clip_spans(caption: Caption, end: int) -> Caption:
    """The caption cut at character `end`, with the spans that fit wholly."""
    spans = tuple(s for s in caption.spans or () if all(b <= end for _, b in s.chars))
    return Caption(caption.id, caption.text[:end], spans)


def clip_pieces(caption: Caption, count: int, pieces: list[str]) -> Caption:
    """A caption of imported ids cut to its first `count` pieces (spelt `pieces`), with the spans that fit wholly."""
    assert caption.ids is not None
    spans = tuple(s for s in caption.spans or () if max(s.pieces) < count)
    return Caption(caption.id, spell(pieces[:count])[0], spans, caption.ids[:count])


def span_problem(text: str, spans: list[dict] | tuple[Span, ...]) -> str | None:
    """What is wrong with the spans of a caption, None if nothing."""
    for span in spans:
        chars = span.get("chars", []) if isinstance(span, dict) else span.chars
        for a, b in chars:
            if not 0 <= a < b <= len(text):
                return f"a span at {a}..{b} lies outside the caption"
            if text[a:b] != text[a:b].strip():
                return f"a span at {a}..{b} begins or ends with a space"
    return None


def piece_problem(ids: list[int], spans: list[dict], vocab_size: int) -> str | None:
    """What is wrong with imported word pieces and the spans over them, None if nothing."""
    if not ids or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        return f"its ids are not pieces of the vocabulary of {vocab_size}"
    for span in spans:
        pieces = span.get("pieces") or [-1]
        if sorted(set(pieces)) != pieces or pieces[0] < 0 or pieces[-1] >= len(ids):
            return f"a span names pieces {span.get('pieces')} of {len(ids)}"
    return None
