"""The limit of word pieces holds for training captions; other splits keep theirs whole unless a limit names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_inputs import TinyCoco, contents, load

from preprocess import build, pack
from preprocess.verify import verify_corpus
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest

LONG = "A cat " + "and a dog " * 30 + "near a tree"  # 95 words, each a piece of the trained vocabulary; 97 with [CLS] and [SEP]
LONGER = LONG + " and a mat"  # 100 pieces


@pytest.fixture
def corpus(tiny_coco: TinyCoco) -> TinyCoco:
    """Images 3 and 1 are train, 2 and 4 test; caption 10 (of image 1) has 97 pieces and caption 20 (of image 2) 100."""
    tiny_coco.notes[0]["caption"], tiny_coco.notes[2]["caption"] = LONG, LONGER
    return tiny_coco.write()


def caption(out: Path, split: str, key: int) -> str:
    return load(out, split)[f"{key:012d}"]["captions.json"][0]["text"]


def test_a_test_caption_stays_whole(corpus: TinyCoco, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack.run(corpus.arguments(out, "--long-captions", "truncate"))
    assert caption(out, "train", 1) == " ".join(LONG.split()[:58]) and caption(out, "test", 2) == LONGER
    raw = json.loads((out / "manifest.json").read_text())
    assert {split: part["max_caption_pieces"] for split, part in raw["splits"].items()} == {"train": 60, "test": 100}
    assert (raw["max_caption_pieces"], raw["captions_truncated"]) == (100, 1)
    assert raw["made_by"]["arguments"]["max_caption_pieces"] == {"train": 60}
    manifest = read_manifest(out)
    assert (manifest.caption_pieces("train"), manifest.caption_pieces("test")) == (60, 100)
    assert [int(load_bank(out, split)[0].tokens.lengths.max()) for split in ("train", "test")] == [60, 100]
    verify_corpus(out)


def test_error_and_drop_concern_the_splits_with_a_limit(corpus: TinyCoco, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"caption 10 of image 0{11}1 has 97 word .* limit of split 'train' is 60; .* train=97\."):
        pack.run(corpus.arguments(tmp_path / "a"))
    pack.run(corpus.arguments(tmp_path / "b", "--max-caption-pieces", "97"))
    assert caption(tmp_path / "b", "train", 1) == LONG and caption(tmp_path / "b", "test", 2) == LONGER
    pack.run(corpus.arguments(tmp_path / "c", "--long-captions", "drop"))
    assert caption(tmp_path / "c", "train", 1) != LONG and caption(tmp_path / "c", "test", 2) == LONGER
    verify_corpus(tmp_path / "c")


def test_limits_of_several_splits(corpus: TinyCoco, tmp_path: Path) -> None:
    limits = ["--max-caption-pieces", "train=20", "test=30", "--long-captions", "truncate"]
    pack.run(corpus.arguments(tmp_path / "a", *limits))
    assert caption(tmp_path / "a", "train", 1) == " ".join(LONG.split()[:18])
    assert caption(tmp_path / "a", "test", 2) == " ".join(LONGER.split()[:28])
    verify_corpus(tmp_path / "a")
    pack.run(corpus.arguments(tmp_path / "b", "--max-caption-pieces", "test=30", "--long-captions", "truncate"))
    assert caption(tmp_path / "b", "train", 1) == " ".join(LONG.split()[:58])  # train keeps its 60
    with pytest.raises(UserError, match=r"--max-caption-pieces names split 'tset', .* no such split; did you mean 'test'"):
        pack.run(corpus.arguments(tmp_path / "c", "--max-caption-pieces", "tset=30"))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("given", ["2", "0", "-5", "train=", "=7", "train=x", "a b=9", "train=2", "60.5", "²"])
def test_what_is_no_limit(given: str, tiny_coco: TinyCoco, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        pack.run(tiny_coco.arguments(tmp_path / "a", f"--max-caption-pieces={given}"))
    assert "is not N or SPLIT=N, such as 60 or train=60, with N at least 3" in capsys.readouterr().err


def test_a_split_named_twice(tiny_coco: TinyCoco, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        pack.run(tiny_coco.arguments(tmp_path / "a", "--max-caption-pieces", "60", "train=70"))
    assert "names a split twice: train, train" in capsys.readouterr().err


def test_three_pieces_are_one_word(corpus: TinyCoco, tmp_path: Path) -> None:
    pack.run(corpus.arguments(tmp_path / "a", "--max-caption-pieces", "3", "--long-captions", "truncate"))
    assert caption(tmp_path / "a", "train", 1) == "A"
    verify_corpus(tmp_path / "a")


def test_limits_are_part_of_the_identity(corpus: TinyCoco, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The same limits in another spelling are the same corpus; another limit of one split is another."""
    out = tmp_path / "out"
    pack.run(corpus.arguments(out, "--long-captions", "truncate", "--max-caption-pieces", "test=30"))
    pack.run(corpus.arguments(out, "--long-captions", "truncate", "--max-caption-pieces", "test=30", "train=60"))
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"made from other arguments or inputs \(max_caption_pieces\)"):
        pack.run(corpus.arguments(out, "--long-captions", "truncate"))


def test_a_killed_run_with_limits_ends_with_the_same_bytes(
    corpus: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--shard-size", "1", "--long-captions", "truncate", "--max-caption-pieces", "train=20", "test=30"]
    pack.run(corpus.arguments(tmp_path / "whole", *options))
    finished = build.Packer.pack

    def dies(self: build.Packer, job: build.Job):
        if job.file == "test-000000.tar":
            raise OSError("disk full")
        return finished(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(build.Packer, "pack", dies)
        with pytest.raises(OSError, match=r"disk full"):
            pack.run(corpus.arguments(tmp_path / "killed", *options))
    with pytest.raises(UserError, match=r"unfinished run with other arguments or inputs \(max_caption_pieces\)"):
        pack.run(corpus.arguments(tmp_path / "killed", *options[:-2], "train=20"))
    pack.run(corpus.arguments(tmp_path / "killed", *options))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_verify_compares_the_longest_caption_of_each_split(corpus: TinyCoco, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack.run(corpus.arguments(out, "--long-captions", "truncate"))
    path = out / "manifest.json"
    whole = path.read_text()
    manifest = json.loads(whole)
    manifest["splits"]["train"]["max_caption_pieces"] = 59
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"says max_caption_pieces 59 of split train, the shards hold 60"):
        verify_corpus(out)
    manifest = json.loads(whole)
    for part in manifest["splits"].values():  # as manifests were before
        del part["max_caption_pieces"]
    path.write_text(json.dumps(manifest))
    verify_corpus(out)
    assert read_manifest(out).caption_pieces("train") == 100
