"""tagsds-write --layout shards: a corpus with negatives.json in its samples, and that everything reads it as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preprocess import pack
from preprocess.verify import verify_corpus
from tagsds import evaluate
from tagsds import write as program
from tagsds.data.samples import negatives_of
from tagsds.data.shard_files import read_members
from tagsds.data.shards import load_bank, read_samples
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.formats.manifest import read_manifest
from tagsds.negatives import written_shards
from tests.launch import ROOT, free_port
from tests.trained import save_run

SMALL = ["--split", "dev", "--number", "2", "--maskings", "3", "--refills", "3", "--no-blind"]
SMALL += ["--attested", "0", "--above-true", "1"]  # the encoder is not trained: its scores say nothing


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A drawn world whose dev split has two shards."""
    folder = tmp_path_factory.mktemp("corpus") / "world"
    arguments = ["world", "--out", folder, "--train", 4, "--dev", 6, "--test", 2, "--shard-size", 4, "--workers", 1]
    pack.run([str(argument) for argument in arguments])
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tagsdc"
    save_run(folder, corpus)
    return folder


def write(run: Path, corpus: Path, output: Path, *more: object) -> None:
    arguments = ["--checkpoint", run, "--data", corpus, "--output", output, "--layout", "shards", *SMALL, *more]
    program.main([str(argument) for argument in arguments])


def sums(folder: Path) -> dict[str, str]:
    """Of every file but the cache, which the first reader makes."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: sha256_of(path) for name, path in files.items() if not name.startswith("cache/")}


@pytest.fixture(scope="module")
def written(run, corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "out"
    write(run, corpus, folder)
    return folder


def test_each_sample_has_its_negatives(run, corpus, written, tmp_path):
    arguments = ["--checkpoint", run, "--data", corpus, "--output", tmp_path / "lines", *SMALL]
    program.main([str(argument) for argument in arguments])
    lines = [json.loads(line) for line in (tmp_path / "lines" / "negatives.jsonl").read_text().splitlines()]
    expected: dict[tuple[str, str], list[dict]] = {}
    for line in lines:
        inner = {name: line[name] for name in ("text", "score", "kind", "changes", "blind")}
        expected.setdefault((line["image"], line["caption_id"]), []).append(inner)
    scores = {line["caption_id"]: line["caption_score"] for line in lines}
    found = 0
    for shard in sorted(corpus.glob("dev-*.tar")):
        for old, new in zip(read_samples([shard]), read_samples([written / shard.name]), strict=True):
            assert list(new) == [*list(old)[: list(old).index("captions.json") + 1], "negatives.json",
                                 *list(old)[list(old).index("captions.json") + 1 :]]  # fmt: skip
            assert all(new[name] == data for name, data in old.items() if not name.startswith("__url"))
            captions = json.loads(old["captions.json"])
            rows = negatives_of(new, "here", len(captions))
            assert [row["id"] for row in rows] == [caption["id"] for caption in captions]
            for row in rows:
                assert row["negatives"] == expected.pop((old["__key__"], row["id"]), [])
                assert row["score"] == scores.get(row["id"], row["score"])
                found += len(row["negatives"])
    assert found == len(lines) > 0 and not expected


def test_the_manifest_and_what_stays(corpus, written):
    old, new = json.loads((corpus / "manifest.json").read_text()), json.loads((written / "manifest.json").read_text())
    about = new.pop("negatives")["dev"]
    figures = json.loads((written / "figures.json").read_text())
    assert about == {"captions": 30, "negatives": figures["figures"]["kept"], "settings": figures["settings"]}
    for shard in new["splits"]["dev"]["shards"]:
        path = written / shard["file"]
        assert shard.pop("bytes") == path.stat().st_size and shard.pop("sha256") == sha256_of(path)
    for shard in old["splits"]["dev"]["shards"]:
        del shard["bytes"], shard["sha256"]
    assert new == old
    for name, digest in sums(corpus).items():
        if not name.startswith(("dev-", "manifest")):
            assert sums(written)[name] == digest, name
    assert "is sound" in verify_corpus(written)
    assert set(read_manifest(written).negatives) == {"dev"}
    # without the new member and with plain headers, the bytes of a shard are the packer's
    for shard in sorted(corpus.glob("dev-*.tar")):
        kept = [(name, data) for name, data in read_members(written / shard.name) if not name.endswith(".negatives.json")]
        assert kept == list(read_members(shard))


def test_it_is_read_as_before(run, corpus, written, tmp_path, capsys):
    old, new = load_bank(corpus, "dev")[0], load_bank(written, "dev")[0]
    assert new.texts == old.texts and list(new.keys) == list(old.keys)
    for name in ("tokens", "spans", "regions", "captions_of_image"):
        assert torch.equal(getattr(new, name).values, getattr(old, name).values), name
    assert torch.equal(new.boxes, old.boxes)
    found = []
    for folder in (corpus, written):
        output = tmp_path / f"{folder.name}.json"
        evaluate.main(["--checkpoint", str(run), "--data", str(folder), "--split", "dev", "--output", str(output)])
        found.append(json.loads(output.read_text())["recalls"])
    assert found[0] == found[1]


def test_written_again_for_another_split(run, written, tmp_path):
    """A corpus with negatives is a corpus: its own can be replaced, and another split's added."""
    write(run, written, tmp_path / "more", "--split", "test")
    assert set(read_manifest(tmp_path / "more").negatives) == {"dev", "test"} and "is sound" in verify_corpus(tmp_path / "more")
    write(run, written, tmp_path / "again", "--seed", 7)
    assert "is sound" in verify_corpus(tmp_path / "again")
    for sample in read_samples([tmp_path / "again" / "dev-000000.tar"]):
        assert [name for name in sample].count("negatives.json") == 1


@pytest.mark.parametrize("dies_in", ["write_block", "write_shard", "finish_corpus"])
def test_killed_and_resumed_gives_the_same_bytes(run, corpus, written, tmp_path, monkeypatch, dies_in):
    place = program.Writing if dies_in == "write_block" else program
    real, calls = getattr(place, dies_in), []

    def pulled(*args):
        calls.append(args)
        if len(calls) == (1 if dies_in == "finish_corpus" else 2):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(place, dies_in, pulled)
    with pytest.raises(KeyboardInterrupt):
        write(run, corpus, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists() and (tmp_path / "out" / "parts").is_dir()
    monkeypatch.setattr(place, dies_in, real)
    made = []
    samples = written_shards.with_negatives
    monkeypatch.setattr(written_shards, "with_negatives", lambda path, rows: made.append(path.name) or samples(path, rows))
    write(run, corpus, tmp_path / "out")
    shards = ["dev-000000.tar", "dev-000001.tar"]
    assert made == {"write_block": shards, "write_shard": shards[1:], "finish_corpus": []}[dies_in]
    assert sums(tmp_path / "out") == sums(written)


def test_a_copy_where_the_disk_has_no_links(run, corpus, written, tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    write(run, corpus, tmp_path / "out")
    assert sums(tmp_path / "out") == sums(written)
    assert not (tmp_path / "out" / "train-000000.tar").samefile(corpus / "train-000000.tar")
    assert (written / "train-000000.tar").samefile(corpus / "train-000000.tar")


def test_two_processes_write_the_same_bytes(run, corpus, written, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command += ["-m", "tagsds.write", "--checkpoint", str(run), "--data", str(corpus), "--output", str(tmp_path / "out")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    done = subprocess.run([*command, "--layout", "shards", *SMALL], cwd=ROOT, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sums(tmp_path / "out") == sums(written)


def test_what_a_user_is_told(run, corpus, written, tmp_path, capsys):
    with pytest.raises(SystemExit):
        write(run, corpus, corpus)
    assert "manifest.json is of another corpus; name a new folder as --output" in capsys.readouterr().err
    sample = next(read_samples([written / "dev-000000.tar"]))
    captions = len(json.loads(sample["captions.json"]))
    for change, message in (
        (b"[]", "it is of 0 captions, the sample has 5"),
        (b'[{"id": "1", "score": "high", "negatives": []}]', r"\[0\].score is 'high', not a finite number"),
    ):
        with pytest.raises(UserError, match=message):
            negatives_of(sample | {"negatives.json": change}, "here", captions)
    del sample["negatives.json"]
    with pytest.raises(UserError, match=r"here: negatives\.json is missing"):
        negatives_of(sample, "here", captions)
