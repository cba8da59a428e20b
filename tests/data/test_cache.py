"""The cache of a corpus's tables: what it gives is what the shards give, and nothing damaged, foreign or half written is used."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tagsds.data import cache as module
from tagsds.data.bank import Bank
from tagsds.data.cache import Cache
from tagsds.data.shards import load_bank, load_shards
from tagsds.data.source import BankSource, DataConfig
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tests.data.corpus import Alone, write_corpus

TENSORS = ("image_of_caption", "boxes", "classes")
RAGGED = ("tokens", "spans", "captions_of_image", "regions")
STRINGS = ("texts", "keys", "caption_ids")


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Eleven training images in shards of four, three of test; soft labels of six classes."""
    return write_corpus(tmp_path / "corpus", {"train": 11, "test": 3}, classes=6)


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Files of the shards of each unit that is built."""
    built: list[str] = []
    real = Cache.build

    def counted(self, path, shards):
        built.append("+".join(shard["file"].split(".")[0][-1] for shard in shards))
        real(self, path, shards)

    monkeypatch.setattr(Cache, "build", counted)
    return built


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


# --- what is loaded ------------------------------------------------------------------------------------------------


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


# --- what is not used ----------------------------------------------------------------------------------------------


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


# --- who builds ----------------------------------------------------------------------------------------------------

BUILD = """
import os, sys, time
from pathlib import Path
from tagsds.data import cache
from tagsds.data.shards import load_bank
real = cache.Cache.build
def build(self, path, shards):
    print("builds", flush=True)
    time.sleep(1.0)
    real(self, path, shards)
cache.Cache.build = build
if sys.argv[2] == "without locks":
    cache.fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError("no locks"))
ready = Path(sys.argv[3])
(ready / str(os.getpid())).touch()
while len(list(ready.iterdir())) < 2:  # both have imported what they need
    time.sleep(0.01)
bank, _ = load_bank(sys.argv[1], "train")
print(bank.texts[7], float(bank.regions.values.float().sum()))
"""


@pytest.mark.parametrize(("locks", "builders"), [("with locks", 1), ("without locks", 2)])
def test_two_processes_at_once_end_with_one_whole_cache(corpus, tmp_path, locks, builders):
    expected = plain(corpus)
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-c", BUILD, str(corpus), locks, str(tmp_path / "ready")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = []
    for process in running:
        out, problem = process.communicate(timeout=120)
        assert process.returncode == 0, problem
        said += out.splitlines()
    assert said.count("builds") == builders
    assert {line for line in said if line != "builds"} == {f"{expected.texts[7]} {float(expected.regions.values.float().sum())}"}
    assert [path.name for path in (corpus / "cache").iterdir() if path.is_dir()] == [unit(corpus).name]
    assert_equal(load_bank(corpus, "train")[0], expected)


def test_what_a_killed_build_left_is_removed(corpus, builds):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (corpus / "cache").mkdir()
    left = [corpus / "cache" / f"{unit(corpus).name}.building.{node}.{ended.pid}" for node in (os.uname().nodename, "elsewhere")]
    for folder in left:
        folder.mkdir()
    load_bank(corpus, "train")
    assert not left[0].exists() and left[1].exists()  # of another node's process nothing is known


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(corpus, monkeypatch, capsys, code):
    """The bank is read into memory, and a run says so once."""
    real = Path.mkdir

    def refuse(self, *args, **kwargs):
        if "cache" in self.parts and self.name != "cache":
            raise OSError(code, os.strerror(code), str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(module, "_said", set())
    for _ in range(2):
        assert_equal(load_bank(corpus, "train")[0], plain(corpus))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(corpus / "cache") in said[0] and "data.cache" in said[0] and os.strerror(code) in said[0]


def test_a_file_in_the_place_of_the_folder(corpus, monkeypatch, capsys):
    (corpus / "cache").write_text("mine")
    monkeypatch.setattr(module, "_said", set())
    assert_equal(load_bank(corpus, "train")[0], plain(corpus))
    assert "cannot be written" in capsys.readouterr().err and (corpus / "cache").read_text() == "mine"


# --- windows -------------------------------------------------------------------------------------------------------


def windowed(folder: Path, cache: str, rank: int = 0, ranks: int = 1) -> BankSource:
    """Two of six shards at a time, three steps each."""
    largest = max(path.stat().st_size for path in folder.glob("train-*.tar"))
    config = DataConfig(max_gib=2.5 * largest / 2**30, window_steps=3, cache=cache)
    return BankSource(str(folder), config, 5, Alone(rank, ranks))


@pytest.fixture
def six(tmp_path) -> Path:
    return write_corpus(tmp_path / "six", {"train": 24})


def test_windows_of_a_resumed_run_are_those_of_an_undisturbed_one(six):
    for rank in (0, 1):
        without, cached = windowed(six, "none", rank, 2), windowed(six, "", rank, 2)
        for step in range(0, 24, 2):
            expected, number = without.at(step)
            bank, window = cached.at(step)
            assert window == number == step // 3
            assert_equal(bank, expected)
            resumed, window = windowed(six, "", rank, 2).at(step)
            assert window == number
            assert_equal(resumed, expected)


def test_the_next_window_is_prepared_while_this_one_is_used(six, builds):
    source = windowed(six, "")
    source.at(0)
    source._ahead.join()
    first, second = source.window(0), source.window(1)
    assert builds == [str(number) for number in [*first, *second]]
    assert source.waited_s == 0.0
    bank, _ = source.at(3)  # nothing is built for it now; what is built from here on is the third window's
    source._ahead.join()
    assert builds == [str(number) for number in [*first, *second, *source.window(2)]]
    assert_equal(bank, load_shards(source.manifest, [source.shards[i] for i in second]))
    assert source.waited_s > 0.0


def test_nothing_is_prepared_without_a_cache(six):
    source = windowed(six, "none")
    source.at(0)
    assert source._ahead is None and not (six / "cache").exists()


def test_a_damaged_shard_ahead_is_reported_when_its_window_comes(six):
    source = windowed(six, "")
    path = six / source.shards[source.window(1)[0]]["file"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    source.at(0)
    source._ahead.join()
    assert source.at(2)[1] == 0
    with pytest.raises(UserError, match=f"{path.name} has another sha256"):
        source.at(3)
