"""The cache of a corpus's tables gives what the shards give."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tagsds.data import cache as module
from tagsds.data.shards import load_bank, load_shards
from tagsds.formats.manifest import read_manifest
from tests.data.cached import assert_equal, plain, unit
from tests.data.corpus import write_corpus


def test_the_shards_without_a_cache_against_the_tars(corpus):
    """The reference of all that follows: read by tarfile and numpy alone."""
    samples: dict[str, dict] = {}
    for path in sorted(corpus.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, name = member.name.split(".", 1)
                data = tar.extractfile(member).read()
                samples.setdefault(key, {})[name] = json.loads(data) if name == "captions.json" else np.load(io.BytesIO(data))
    bank, values = plain(corpus), list(samples.values())
    assert list(bank.keys) == list(samples) and not (corpus / "cache").exists()
    assert np.array_equal(bank.regions.values, np.concatenate([sample["regions.npy"] for sample in values]))
    assert np.array_equal(bank.boxes, np.concatenate([sample["boxes.npy"] for sample in values]))
    assert np.array_equal(bank.classes, np.concatenate([sample["classes.npy"] for sample in values]))
    captions = [caption for sample in values for caption in sample["captions.json"]]
    assert list(bank.texts) == [caption["text"] for caption in captions] and any("café" in text for text in bank.texts)
    assert list(bank.caption_ids) == [caption["id"] for caption in captions]
    assert bank.image_of_caption.tolist() == [image for image in range(11) for _ in range(5)]
    assert bank.texts[-1] == captions[-1]["text"] and bank.texts[2:4] == [caption["text"] for caption in captions[2:4]]
    with pytest.raises(IndexError):
        bank.texts[55]


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("boxes", [False, True])
def test_cached_banks_equal_those_of_the_shards(tmp_path, builds, boxes, classes):
    folder = write_corpus(tmp_path / "corpus", {"train": 11, "test": 3}, classes=6, boxes=boxes)
    for split in ("train", "test"):
        expected = plain(folder, split, classes=classes)
        for _ in ("built", "mapped"):
            assert_equal(load_bank(folder, split, classes=classes)[0], expected)
    assert builds == ["0+1+2", "0"]


def test_a_prefix_and_single_shards_are_cut_from_the_split(corpus, builds):
    load_bank(corpus, "train")
    manifest = read_manifest(corpus)
    for first in (1, 4, 5, 11, 50):
        assert_equal(load_bank(corpus, "train", first=first)[0], plain(corpus, first=first))
    shards = manifest.shards("train")
    for chosen in ([1], [2], [1, 2], [2, 0]):
        wanted = [shards[i] for i in chosen]
        assert_equal(load_shards(manifest, wanted, cache=""), load_shards(manifest, wanted))
    assert builds == ["0+1+2"]


def test_windows_of_single_units(corpus, builds):
    manifest = read_manifest(corpus)
    shards = manifest.shards("train")
    for chosen in ([2, 0], [0, 2], [1, 0]):
        wanted = [shards[i] for i in chosen]
        assert_equal(load_shards(manifest, wanted, cache=""), load_shards(manifest, wanted))
    assert builds == ["2", "0", "1"]


def test_a_part_alone_builds_nothing(corpus, builds):
    assert_equal(load_bank(corpus, "train", first=2)[0], plain(corpus, first=2))
    assert builds == []


def test_soft_labels_join_a_cache_that_was_made_without(corpus, builds):
    assert load_bank(corpus, "train", classes=False)[0].classes is None
    assert not (unit(corpus) / "classes.npy").exists()
    assert_equal(load_bank(corpus, "train")[0], plain(corpus))
    assert_equal(load_bank(corpus, "train", classes=False)[0], plain(corpus, classes=False))
    assert builds == ["0+1+2", "0+1+2"]


def test_the_tables_are_the_files_pages(corpus):
    """Views of one mapping, whatever is written into them stays out of the file."""
    bank, _ = load_bank(corpus, "train")
    before = (unit(corpus) / "regions.npy").read_bytes()
    name = f"{unit(corpus).name}/regions.npy"
    (mapped,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
    begin, end = (int(part, 16) for part in mapped.split()[0].split("-"))
    assert begin <= bank.regions.values.data_ptr() < end
    bank.regions.values[0] = 7.0
    assert (unit(corpus) / "regions.npy").read_bytes() == before


def test_a_folder_elsewhere_and_none(corpus, tmp_path, builds):
    load_bank(corpus, "train", cache=str(tmp_path / "fast" / "disk"))
    assert not (corpus / "cache").exists() and len(list((tmp_path / "fast" / "disk").glob("*/index.json"))) == 1
    load_bank(corpus, "train", cache="none")
    assert builds == ["0+1+2"] and not (corpus / "cache").exists()


def test_no_pickle(corpus):
    load_bank(corpus, "train")
    files = sorted(unit(corpus).iterdir())
    assert {path.suffix for path in files} == {".npy", ".json"}
    for path in files:
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
    # an array of objects where numbers belong, with an index that vouches for it
    target, index = unit(corpus) / "tokens.npy", json.loads((unit(corpus) / "index.json").read_text())
    np.save(target, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    index["tables"]["tokens"] |= {"bytes": target.stat().st_size, "mtime_ns": target.stat().st_mtime_ns}
    module._write_index(unit(corpus) / "index.json", index)
    assert_equal(load_bank(corpus, "train")[0], plain(corpus))
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(target.read_bytes())
