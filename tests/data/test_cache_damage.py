"""Nothing damaged, foreign or half written in a cache is used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tagsds.data import cache as module
from tagsds.data.cache import Cache
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tests.data.cached import assert_equal, plain, unit
from tests.data.corpus import write_corpus


def damage(path: Path, how: str, other: Path) -> None:
    file = path / "tokens.npy"
    data = file.read_bytes()
    if how == "a bit flipped":
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif how == "cut short":
        file.write_bytes(data[:-8])
    elif how == "missing":
        file.unlink()
    elif how == "another corpus's file":
        shutil.copy2(other / "region_lengths.npy", path / "region_lengths.npy")
    elif how == "two files swapped":  # of one dtype and size
        for name, source in (("token_lengths", "text_lengths"), ("text_lengths", "token_lengths")):
            (path / f"{name}.new").write_bytes((path / f"{source}.npy").read_bytes())
        for name in ("token_lengths", "text_lengths"):
            os.replace(path / f"{name}.new", path / f"{name}.npy")
    elif how == "another corpus's unit":
        shutil.rmtree(path)
        shutil.copytree(other, path)
    elif how == "no index":
        (path / "index.json").unlink()
    elif how == "half an index":
        (path / "index.json").write_bytes((path / "index.json").read_bytes()[:200])
    elif how == "an index of other numbers":
        text = (path / "index.json").read_text()
        rows = json.loads(text)["tables"]["tokens"]["rows"]
        (path / "index.json").write_text(text.replace(f'"rows": {rows}', f'"rows": {rows - 1}', 1))
    elif how == "another version":
        index = json.loads((path / "index.json").read_text()) | {"version": 0}
        module._write_index(path / "index.json", index)


@pytest.mark.parametrize(
    "how",
    ["a bit flipped", "cut short", "missing", "another corpus's file", "two files swapped", "another corpus's unit", "no index",
     "half an index", "an index of other numbers", "another version"],
)  # fmt: skip
def test_a_cache_that_is_not_what_was_built_is_built_again(corpus, tmp_path, builds, how):
    other = write_corpus(tmp_path / "other", {"train": 11, "test": 3}, classes=6, seed=1)
    load_bank(other, "train")
    load_bank(corpus, "train")
    expected = plain(corpus)
    damage(unit(corpus), how, unit(other))
    assert_equal(load_bank(corpus, "train")[0], expected)
    assert builds == ["0+1+2"] * 3
    assert_equal(load_bank(corpus, "train")[0], expected)
    assert builds == ["0+1+2"] * 3 and len([path for path in (corpus / "cache").iterdir() if path.is_dir()]) == 1


def test_a_copied_cache_is_checked_and_kept(corpus, tmp_path, builds):
    """Other times of change: checksums are computed once, then the new times stand in the index."""
    expected = load_bank(corpus, "train")[0]
    copied = tmp_path / "copied"
    shutil.copytree(corpus, copied, copy_function=shutil.copyfile)
    assert_equal(load_bank(copied, "train")[0], expected)
    index = json.loads((unit(copied) / "index.json").read_text())
    assert index["tables"]["tokens"]["mtime_ns"] == (unit(copied) / "tokens.npy").stat().st_mtime_ns
    assert index["shard_times"][0] == [(copied / "train-000000.tar").stat().st_mtime_ns]
    assert builds == ["0+1+2"]


def test_another_corpus_or_tokenizer_has_another_key(corpus, tmp_path):
    manifest = read_manifest(corpus)
    shards = manifest.shards("train")
    keys = {Cache(manifest, "", True, False).key(part) for part in (shards, shards[:1], shards[1:], manifest.shards("test"))}
    other = read_manifest(write_corpus(tmp_path / "other", {"train": 11}, seed=1))
    keys.add(Cache(other, "", True, False).key(other.shards("train")))
    config = corpus / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    keys.add(Cache(manifest, "", True, False).key(shards))
    assert len(keys) == 6


def test_a_shard_that_changed_after_the_build_is_found(corpus):
    load_bank(corpus, "train")
    path = corpus / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"train-000001.tar has another sha256"):
        load_bank(corpus, "train")
    load_bank(corpus, "train", checksum=False)  # which is what the setting says
    path.unlink()
    with pytest.raises(UserError, match=r"train-000001.tar is named in the manifest but missing"):
        load_bank(corpus, "train", checksum=False)


def test_a_build_without_checksums_is_made_up_for(corpus, builds):
    path = corpus / "train-000001.tar"
    data = path.read_bytes()
    at = data.index(b'"id": "4-0"')
    path.write_bytes(data[:at] + data[at:].replace(b'"4-0"', b'"9-9"', 1))
    assert load_bank(corpus, "train", checksum=False)[0].caption_ids[20] == "9-9"
    with pytest.raises(UserError, match="another sha256"):
        load_bank(corpus, "train")
    assert builds == ["0+1+2"]


def test_a_damaged_shard_leaves_no_unit(corpus):
    path = corpus / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="another sha256"):
        load_bank(corpus, "train")
    assert [path.suffix for path in (corpus / "cache").iterdir()] == [".lock"]
