"""Windows of a corpus whose shards are cached one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagsds.data.shards import load_shards
from tagsds.data.source import BankSource, DataConfig
from tagsds.errors import UserError
from tests.data.cached import assert_equal
from tests.data.corpus import Alone, write_corpus


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
