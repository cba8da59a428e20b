"""A packed folder against the contract, resuming a killed run, and what --verify finds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tiny_inputs import contents
from transformers import AutoTokenizer

from preprocess import build, pack
from preprocess.shards import ShardWriter
from preprocess.verify import verify_corpus
from tagsds.errors import UserError
from tagsds.files import sha256_of

SMALL = ["--train", "13", "--dev", "4", "--test", "6", "--shard-size", "5"]


def world(out: Path, *more: str, workers: int = 1) -> Path:
    pack.run(["world", "--out", str(out), "--workers", str(workers), *SMALL, *more])
    return out


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("world") / "out")


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_manifest_counts_and_checksums(packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["feature_dim"]) == ("tagsds-shards", 1, 192)
    assert [manifest["splits"][s]["images"] for s in ("train", "dev", "test")] == [13, 4, 6]
    assert [s["samples"] for s in manifest["splits"]["train"]["shards"]] == [5, 5, 3]
    assert manifest["splits"]["test"]["captions"] == 30
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            data = (packed / shard["file"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert not (packed / ".journal").exists()
    assert not [p for p in packed.rglob(".*")]


def test_samples_follow_the_contract(packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(packed / "tokenizer")
    urls = [str(packed / shard["file"]) for shard in manifest["splits"]["train"]["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"train-{i:06d}" for i in range(13)]
    pieces, regions = 0, 0
    for sample in samples:
        arrays = {k[:-4]: np.load(io.BytesIO(v), allow_pickle=False) for k, v in sample.items() if k.endswith(".npy")}
        n = len(arrays["regions"])
        regions += n
        assert (arrays["regions"].dtype, arrays["regions"].shape) == (np.float16, (n, 192))
        assert (arrays["boxes"].dtype, arrays["boxes"].shape) == (np.float32, (n, 4))
        assert (arrays["classes"].dtype, arrays["classes"].shape) == (np.float16, (n, 64))
        assert (arrays["boxes"][:, 2:] > arrays["boxes"][:, :2]).all() and 0 <= arrays["boxes"].min()
        captions = json.loads(sample["captions.json"])
        assert len(captions) == 5 and all(set(c) == {"id", "text", "spans"} and c["spans"] for c in captions)
        ids = tokenizer([c["text"] for c in captions])["input_ids"]
        assert all(row[0] == 2 and row[-1] == 3 and 1 not in row for row in ids)  # [CLS], [SEP], no [UNK]
        pieces = max(pieces, *map(len, ids))
    assert regions == manifest["splits"]["train"]["regions"]
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert pieces <= manifest["max_caption_pieces"] <= 60 and len(tokenizer) == manifest["vocab_size"]


def test_members_are_in_the_order_of_the_contract_and_carry_no_time(packed: Path) -> None:
    with tarfile.open(packed / "dev-000000.tar") as tar:
        first = tar.getmembers()[:5]
    names = ["regions.npy", "boxes.npy", "classes.npy", "captions.json", "image.png"]
    assert [m.name for m in first] == [f"dev-000000.{name}" for name in names]
    assert {(m.mtime, m.uid, m.gid) for m in first} == {(0, 0, 0)}


def test_edits_come_in_sugarcrepes_layout(packed: Path) -> None:
    assert not (packed / "edits" / "train").exists()
    with tarfile.open(packed / "dev-000000.tar") as tar:
        loaded = {m.name[:-14]: json.load(tar.extractfile(m)) for m in tar if m.name.endswith("captions.json")}
    for kind in ("object", "colour", "size", "relation", "count"):
        rows = json.loads((packed / "edits" / "dev" / f"{kind}.json").read_text())
        assert rows and list(rows) == [str(i) for i in range(len(rows))]
        for row in rows.values():
            texts = [c["text"] for c in loaded[row["filename"].removesuffix(".png")]]
            assert row["caption"] in texts and row["negative_caption"] not in texts


def test_workers_do_not_change_a_byte(packed: Path, tmp_path: Path) -> None:
    assert contents(world(tmp_path / "out", workers=2)) == contents(packed)


def test_a_run_that_dies_between_shards_continues_byte_identical(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    original = ShardWriter.write

    def dies(self: ShardWriter, record) -> None:  # in the middle of the third shard
        if record.key == "train-000012":
            raise OSError("no space left")
        done.append(record.key)
        original(self, record)

    monkeypatch.setattr(build.ShardWriter, "write", dies)
    with pytest.raises(OSError, match="no space"):
        world(tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "train-000002.tar").exists()
    monkeypatch.setattr(build.ShardWriter, "write", lambda self, r: (done.append(r.key), original(self, r))[1])
    done.clear()
    world(tmp_path / "out")
    assert "train-000000" not in done and "train-000012" in done  # finished shards are kept
    assert contents(tmp_path / "out") == contents(packed)


def test_a_killed_process_continues_byte_identical(tmp_path: Path) -> None:
    size = ["--train", "300", "--dev", "0", "--test", "0", "--shard-size", "20", "--workers", "2"]
    command = [sys.executable, "-m", "preprocess.pack", "world", "--out", str(tmp_path / "a"), *size]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal = tmp_path / "a" / ".journal"
    limit = time.monotonic() + 60
    while len(list(journal.glob("*.tar.json"))) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a" / "manifest.json").exists()
    time.sleep(1.5)  # the workers notice and end
    assert len(list(journal.glob("*.tar.json"))) >= 3
    pack.run([*command[3:]])
    pack.run(["world", "--out", str(tmp_path / "b"), *size])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_damaged_finished_shard_is_made_again(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> dict:
        raise OSError("stop before the manifest")

    monkeypatch.setattr(build, "manifest", stop)
    with pytest.raises(OSError, match="stop"):
        world(tmp_path / "out")
    monkeypatch.undo()
    with open(tmp_path / "out" / "train-000001.tar", "r+b") as stream:
        stream.truncate(1000)
    assert contents(world(tmp_path / "out")) == contents(packed)


def test_a_complete_corpus_is_left_alone_and_others_need_overwrite(
    copy: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    world(copy)
    assert "already complete" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before
    with pytest.raises(UserError, match=r"other arguments or inputs \(seed\); use --overwrite"):
        world(copy, "--seed", "5")
    world(copy, "--seed", "5", "--overwrite")
    assert contents(copy) == contents(world(tmp_path / "fresh", "--seed", "5"))


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="is not empty and holds no corpus"):
            world(tmp_path, *more)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_verify_accepts_what_was_packed(packed: Path, capsys: pytest.CaptureFixture) -> None:
    for form in (["--verify", str(packed)], ["verify", str(packed)]):
        pack.run(form)
        assert "train 13 images, 65 captions" in capsys.readouterr().out


def test_verify_finds_a_truncated_shard(copy: Path) -> None:
    with open(copy / "train-000001.tar", "r+b") as stream:
        stream.truncate(5000)
    with pytest.raises(UserError, match=r"train-000001.tar is cut short: 5000 bytes .* --overwrite"):
        verify_corpus(copy)


def test_verify_finds_a_wrong_checksum(copy: Path) -> None:
    path = copy / "test-000000.tar"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"test-000000.tar has another checksum"):
        verify_corpus(copy)


def test_verify_finds_a_missing_shard_edit_and_manifest(copy: Path) -> None:
    (copy / "edits" / "dev" / "size.json").write_text("{}")
    with pytest.raises(UserError, match=r"size.json is missing or not what"):
        verify_corpus(copy)
    (copy / "dev-000000.tar").unlink()
    with pytest.raises(UserError, match=r"dev-000000.tar is missing"):
        verify_corpus(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="unfinished; run the tagsds-pack command"):
        verify_corpus(copy)


def rewrite(copy: Path, change) -> None:
    """Change the members of the first dev image and mend the manifest's length and checksum."""
    path = copy / "dev-000000.tar"
    with tarfile.open(path) as tar:
        members = [[m.name, tar.extractfile(m).read()] for m in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = change(name.partition(".")[2], data) if name.startswith("dev-000000") else data
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    manifest = json.loads((copy / "manifest.json").read_text())
    shard = manifest["splits"]["dev"]["shards"][0]
    shard["bytes"], shard["sha256"] = path.stat().st_size, sha256_of(path)
    (copy / "manifest.json").write_text(json.dumps(manifest))


def changed(member: str, function):
    def change(name: str, data: bytes) -> bytes | None:
        if name != member:
            return data
        if not name.endswith(".npy"):
            return function(data)
        array = function(np.load(io.BytesIO(data)))
        if array is None:
            return None
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    return change


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[1] = value
    return array


@pytest.mark.parametrize(
    ("member", "function", "match"),
    [
        ("regions.npy", lambda a: with_value(a, np.nan), "image dev-000000: regions holds NaN"),
        ("regions.npy", lambda a: a[:, :100], r"regions is float16 \[\d, 100\], not float16 \[\d, 192\]"),
        ("regions.npy", lambda a: a.astype(np.float32), "regions is float32"),
        ("boxes.npy", lambda a: with_value(a, 1.2), "a box lies outside 0..1"),
        ("boxes.npy", lambda a: a[:1], r"boxes is float32 \[1, 4\]"),
        ("boxes.npy", lambda a: None, "lacks boxes.npy"),
        ("classes.npy", lambda a: a / 2, "a row of classes does not sum to 1"),
        ("captions.json", lambda d: d[:-20], "captions.json is not valid JSON"),
        ("captions.json", lambda d: d.replace(b'"chars": [[', b'"chars": [[99'), "lies outside the caption"),
        ("captions.json", lambda d: b"[" + d[d.index(b', {"id"') + 1 :], "holds 19 captions, the manifest says 20"),
    ],
)
def test_verify_looks_into_the_samples(copy: Path, member: str, function, match: str) -> None:
    rewrite(copy, changed(member, function))
    with pytest.raises(UserError, match=match):
        verify_corpus(copy)
