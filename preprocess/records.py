"""What every source yields: an image with its regions and captions, and the interface the packer drives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tagsds.data.spans import SPAN_KINDS, Span

__all__ = ["SPAN_KINDS", "Caption", "ImageRecord", "PackOptions", "PreparedSource", "Slice", "Source", "Span", "numpy_seed"]

CAPTION_LIMITS = {"train": 60}  # word pieces with [CLS] and [SEP]; evaluation keeps every caption whole (UNITER, TAGS)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Caption:
    """One sentence of an image; `spans` is None where the source does not know them and the rules have to find them.

    `ids` are the word pieces of a source that was tokenised already, without [CLS] and [SEP]; the text is then for people.
    """

    id: str
    text: str
    spans: tuple[Span, ...] | None = None
    ids: tuple[int, ...] | None = None

    def as_json(self) -> dict:
        """The form of captions.json."""
        ids = {} if self.ids is None else {"ids": list(self.ids)}
        return {"id": self.id, "text": self.text, **ids, "spans": [span.as_json() for span in self.spans or ()]}


@dataclass
class ImageRecord:
    """One image of a source. n regions, D feature width, C classes; boxes are x1, y1, x2, y2 as fractions, 0..1."""

    key: str
    regions: NDArray[np.floating]  # [n, D]
    boxes: NDArray[np.floating] | None  # [n, 4]; None where the source has none for any image
    captions: list[Caption]
    classes: NDArray[np.floating] | None = None  # [n, C], rows sum to 1
    picture: bytes | None = None
    picture_type: str = "jpg"  # "jpg" or "png"
    origin: str = ""  # the file the regions come from, for error messages
    captions_origin: str = ""  # the file the captions come from


class Source(Protocol):
    """A format: a light index (keys of a split in order, texts) and a record on demand. Must pickle."""

    name: str
    feature_dim: int
    class_names: list[str]
    num_classes: int  # columns of the soft labels
    background_class: bool  # column 0 of the soft labels is the background
    files: list[Path]  # inputs; their checksums are part of the corpus's identity
    has_boxes: bool
    imported_ids: bool  # captions come as word-piece ids

    @property
    def facts(self) -> dict:
        """What the inputs say of themselves, for the manifest."""
        ...

    def splits(self) -> dict[str, list[str]]:
        """Image keys of every split, in the order they are written."""
        ...

    def texts(self, split: str) -> Iterable[str]:
        """Captions of a split, for training a vocabulary."""
        ...

    def record(self, split: str, key: str) -> ImageRecord:
        """Read one image."""
        ...

    def edits(self, split: str) -> dict[str, list[dict[str, str]]]:
        """Per kind of edit: {filename, caption, negative_caption} of the split; empty where the source has none."""
        ...


class PreparedSource(Source, Protocol):
    """A source that makes the records of a shard together, because a model runs on batches of them."""

    command: str  # what the manifest names as its maker

    def prepare(self, split: str, keys: list[str]) -> list[str]:
        """Called with the keys of a shard before its records are asked for, one by one and in order; those of the keys
        that have a record."""
        ...


@dataclass(frozen=True)
class Slice:
    """Slice `number` (from 1) of `count`; see `preprocess.slices`."""

    number: int
    count: int

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th item, dealt out like cards."""
        return list(items[self.number - 1 :: self.count])


@dataclass(frozen=True)
class PackOptions:
    """What holds for every source. The first group shapes the bytes; the second does not."""

    shard_size: int = 500  # images
    max_caption_pieces: dict[str, int] = field(default_factory=lambda: dict(CAPTION_LIMITS))  # of the splits it names
    long_captions: str = "error"  # error, truncate or drop
    tokenizer: str | None = None  # name, folder or vocab.txt; None trains one
    vocab_size: int = 6000  # pieces of a trained vocabulary
    spans: str = "auto"  # rules, spacy or auto
    workers: int = 2  # processes
    overwrite: bool = False
    slice: Slice | None = None  # pack these shards alone, and no manifest
    merge: bool = False  # pack nothing, write the manifest of the slices
    arguments: dict = field(default_factory=dict)  # of the source, for the manifest


def numpy_seed(*parts: object) -> int:
    """A 64-bit seed that depends on nothing but its parts (Python's hash() changes between processes)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")
