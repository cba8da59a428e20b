"""What a corpus of many shards would break, tried with few: descriptors, lookups, numbers that int32 does not hold."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagsds.config import load_config
from tagsds.data.cache import Cache
from tagsds.data.source import BankSource
from tagsds.errors import UserError
from tagsds.formats.candidates import check_numbers
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.ranks import World
from tagsds.scoring.search import Stored
from tests.conftest import pack


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 shards of two images."""
    folder = tmp_path_factory.mktemp("many") / "world"
    pack("world", "--out", folder, "--train", 40, "--dev", 2, "--test", 2, "--shard-size", 2, "--workers", 1)
    return folder


def test_units_of_many_shards_hold_no_descriptors(many: Path) -> None:
    """numpy's maps would hold 13 a shard until the window is joined."""
    cache = Cache(read_manifest(many), "", False, False)
    shards = cache.manifest.shards("train")
    before = descriptors()
    units = [cache.unit([shard]) for shard in shards]
    assert descriptors() == before and all(unit is not None for unit in units)
    joined = cache.tables(shards[:-1], None, "cpu")
    assert joined is not None and joined.num_images == 38


def test_vectors_of_many_shards_hold_no_descriptors(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.npy" for number in range(30)]
    vectors = np.arange(30 * 3 * 2, dtype=np.float32).reshape(-1, 2)
    for number, file in enumerate(files):
        np.save(file, vectors[3 * number : 3 * number + 3])
    before = descriptors()
    store = Stored(files, torch.arange(90), torch.device("cpu"))
    assert descriptors() == before
    for start, stop in ((0, 1), (2, 4), (3, 6), (0, 90), (89, 90), (7, 31)):
        assert np.array_equal(store.block(start, stop).vectors[:, 0].numpy(), vectors[start:stop])


def shards_of(count: int) -> list[dict[str, Any]]:
    sizes = {"samples": 1000, "captions": 5000, "regions": 36000, "bytes": 148_000_000}
    return [{"file": f"train-{i:06d}.tar", "sha256": f"{i:064x}", **sizes} for i in range(count)]


def test_a_shard_is_found_without_hashing_its_split_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(tmp_path, 2048, 0, [], 30000, 100, 60, {"train": {"shards": shards_of(2000)}})
    cache = Cache(manifest, "", False, False)
    hashed: list[int] = []
    plain = Cache.key
    monkeypatch.setattr(Cache, "key", lambda self, shards: hashed.append(len(shards)) or plain(self, shards))
    for shard in manifest.shards("train")[500:600]:
        assert cache.from_split([shard]) is None
    assert hashed == [2000]


def test_the_shards_of_a_window_are_drawn_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 shards, 400 a window: a permutation for each shard took 400 times as long."""
    shards = shards_of(100_000)
    manifest = Manifest(Path("none"), 2048, 0, [], 30000, 100, 60, {"train": {"shards": shards}})
    monkeypatch.setattr("tagsds.data.source.read_manifest", lambda folder: manifest)
    config = load_config("published-base", ["data.max_gib=56"]).data
    source = BankSource("none", config, 1, World(3, 8))
    begin = time.process_time()
    window = source.window(7)
    assert time.process_time() - begin < 1.0
    assert source.per_window == 406 and len(set(window)) == 406


def test_captions_beyond_int32_are_refused(tmp_path: Path) -> None:
    check_numbers(tmp_path, "train", 2**31 - 1)
    with pytest.raises(UserError, match=r"'train' has 2,147,483,648 captions and candidates number at most 2,147,483,647"):
        check_numbers(tmp_path, "train", 2**31)
