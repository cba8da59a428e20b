"""Banks of a corpus with and without its cache, and that two banks are equal: for the tests of the cache."""

from __future__ import annotations

from pathlib import Path

import torch

from tagsds.data.bank import Bank
from tagsds.data.cache import Cache
from tagsds.data.shards import load_bank
from tagsds.formats.manifest import read_manifest

TENSORS = ("image_of_caption", "boxes", "classes")
RAGGED = ("tokens", "spans", "captions_of_image", "regions")
STRINGS = ("texts", "keys", "caption_ids")


def assert_equal(found: Bank, expected: Bank) -> None:
    for name in TENSORS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name
    for name in RAGGED:
        a, b = getattr(found, name), getattr(expected, name)
        assert a.values.dtype == b.values.dtype and torch.equal(a.values, b.values), name
        assert a.lengths.dtype == b.lengths.dtype and torch.equal(a.lengths, b.lengths), name
    for name in STRINGS:
        assert list(getattr(found, name)) == list(getattr(expected, name)), name
    assert found.background_class == expected.background_class


def plain(folder: Path, split: str = "train", **options) -> Bank:
    return load_bank(folder, split, cache="none", **options)[0]


def unit(folder: Path, split: str = "train") -> Path:
    """The folder of a whole split's unit."""
    manifest = read_manifest(folder)
    return folder / "cache" / Cache(manifest, "", True, False).key(manifest.shards(split))
