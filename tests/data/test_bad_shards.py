"""A shard that is missing or damaged when a run wants it: named, then fatal or left out, as data.bad_shards says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tagsds.data.source import BankSource, DataConfig
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.ranks import World
from tests.data.corpus import write_corpus
from tests.launch import run_two

PROGRAM = Path(__file__).with_name("half_the_shards.py")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four shards of four images each."""
    return write_corpus(tmp_path / "corpus", {"train": 16})


def source_of(folder: Path, bad_shards: str, **more) -> BankSource:
    return BankSource(str(folder), DataConfig(bad_shards=bad_shards, **more), 3, World())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (Path.unlink, r"train-000001.tar \(rank 0 on .* is named in the manifest but missing.*set data.bad_shards=skip"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), r"train-000001.tar .* has 900 bytes where the manifest says"),
        (flip, "train-000001.tar has another sha256"),
    ],
    ids=["vanished", "cut", "rotten"],
)
@pytest.mark.parametrize("cache", ["", "none"])
def test_stop_names_it_and_skip_leaves_it_out(corpus: Path, capsys, cache: str, break_it, sentence: str) -> None:
    break_it(corpus / "train-000001.tar")
    with pytest.raises(UserError, match=sentence):
        source_of(corpus, "stop", cache=cache).at(0)
    source = source_of(corpus, "skip", cache=cache)
    bank, _ = source.at(0)
    assert list(bank.keys) == [f"train-{n:07d}" for n in (*range(4), *range(8, 16))] and bank.num_captions == 60
    assert source.left_out == 1 and "warning: left out: train-000001.tar" in capsys.readouterr().err


def test_a_shard_that_vanishes_between_two_windows(corpus: Path, capsys) -> None:
    """A stream larger than the memory, two shards a window; the second window's are damaged while the first is used."""
    size = 2.2 * max(path.stat().st_size for path in corpus.glob("train-*.tar")) / 2**30
    sources = [source_of(corpus, mode, max_gib=size, window_steps=2, cache="none") for mode in ("stop", "skip")]
    for source in sources:
        assert not source.whole and source.at(1)[0].num_images == 8
    gone = source.window(1)[0]
    (corpus / f"train-{gone:06d}.tar").unlink()
    with pytest.raises(UserError, match=f"train-{gone:06d}.tar .* missing"):
        sources[0].at(2)
    bank, window = sources[1].at(2)
    assert (bank.num_images, window) == (4, 1) and f"left out: train-{gone:06d}.tar" in capsys.readouterr().err
    drawn = sources[1].positives(Draw(3, 2, 0), 20, 1)
    assert sorted(drawn.tolist()) == list(range(20)), "the pairs of the shard that is left, each once"


def test_nothing_left_is_an_error_in_both_modes(corpus: Path) -> None:
    for path in corpus.glob("*.tar"):
        path.unlink()
    for mode in ("stop", "skip"):
        with pytest.raises(UserError, match="and 1 more" if mode == "stop" else "no shard is left"):
            source_of(corpus, mode).at(0)


def test_two_ranks_that_each_see_half_of_them(corpus: Path, tmp_path: Path) -> None:
    """Rank 0's copy lacks the second shard, rank 1's the fourth. Both name both, or both leave both out."""
    for rank, missing in ((0, 1), (1, 3)):
        copy = shutil.copytree(corpus, tmp_path / f"rank{rank}")
        (copy / f"train-{missing:06d}.tar").unlink()
    results = [json.loads(out.splitlines()[-1]) for out in run_two(PROGRAM, tmp_path)]
    for stop, skip in results:
        assert "train-000001.tar (rank 0 on" in stop and "train-000003.tar (rank 1 on" in stop
        assert skip == [f"train-{n:07d}" for n in (*range(4), *range(8, 12))]


def test_uneven_shards_give_every_rank_the_same_steps(tmp_path: Path) -> None:
    """13 images in shards of 4: the last one has one. Windows of one shard a rank; each rank draws from each of its own."""
    folder = write_corpus(tmp_path / "corpus", {"train": 13})
    sizes = {path.name: path.stat().st_size for path in folder.glob("train-*.tar")}
    source = source_of(folder, "stop", max_gib=1.1 * max(sizes.values()) / 2**30, window_steps=1)
    counts = [source.at(step)[0].num_images for step in range(4)]
    assert sorted(counts) == [1, 4, 4, 4]
