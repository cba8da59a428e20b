"""A corpus packed in slices has the bytes of one packed by a single process, whatever was killed on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_inputs import contents

from preprocess import build, pack
from preprocess.arguments import parse_slice
from preprocess.records import Slice
from preprocess.shards import ShardWriter
from tagsds.errors import UserError

SMALL = ["--train", "23", "--dev", "4", "--test", "6", "--shard-size", "5", "--workers", "1"]  # 5 + 1 + 2 shards
FILES = [f"train-{n:06d}.tar" for n in range(5)] + ["dev-000000.tar", "test-000000.tar", "test-000001.tar"]


def arguments(out: Path, *more: str) -> list[str]:
    return ["world", "--out", str(out), *SMALL, *more]


def world(out: Path, *more: str) -> Path:
    pack.run(arguments(out, *more))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(world(tmp_path_factory.mktemp("world") / "out"))


@pytest.mark.parametrize(("text", "expected"), [("1/1", Slice(1, 1)), ("3/8", Slice(3, 8)), ("12/12", Slice(12, 12))])
def test_a_slice_is_a_number_of_a_count(text: str, expected: Slice) -> None:
    assert parse_slice(text) == expected


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "-1/4", "a/4", "1/4/2"])
def test_what_is_no_slice_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        world(tmp_path / "out", f"--slice={text}")
    assert f"'{text}' is not I/N" in capsys.readouterr().err


def test_shards_are_dealt_out_like_cards() -> None:
    assert [Slice(n, 3).share(range(8)) for n in (1, 2, 3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert Slice(4, 4).share(range(3)) == []


@pytest.mark.parametrize("count", [1, 3, 9])  # 9: more slices than shards
@pytest.mark.parametrize("last", ["--merge", ""])
def test_slices_in_any_order_and_the_merge_give_the_same_bytes(
    whole: dict[str, bytes], tmp_path: Path, count: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for number in reversed(range(1, count + 1)):
        world(out, "--slice", f"{number}/{count}")
        assert f"slice {number}/{count} of {out} is packed" in capsys.readouterr().out
        have = {file for file in FILES if (out / file).exists()}
        assert have == {file for n in range(number, count + 1) for file in Slice(n, count).share(FILES)}
        assert not (out / "manifest.json").exists() and not (out / "tokenizer").exists()
    world(out, *filter(None, [last]))
    assert contents(out) == whole
    world(out, "--slice", "1/3")  # a slice that comes late finds the corpus complete
    assert "already complete" in capsys.readouterr().out and contents(out) == whole


def test_slices_at_the_same_time(whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "preprocess.pack"]
    running = [subprocess.Popen([*command, *arguments(out, "--slice", f"{n}/3")], stderr=subprocess.PIPE) for n in (1, 2, 3)]
    said = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    world(out, "--merge")
    assert contents(out) == whole


def test_a_slice_that_was_killed_is_packed_again_by_itself(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for number in (1, 3):
        world(out, "--slice", f"{number}/3")
    original = ShardWriter.write
    written: list[str] = []

    def dies(self: ShardWriter, record) -> None:  # slice 2 holds train-000001, train-000004 and test-000001
        if record.key == "train-000021":
            raise OSError("no space left")
        original(self, record)

    monkeypatch.setattr(build.ShardWriter, "write", dies)
    with pytest.raises(OSError, match="no space"):
        world(out, "--slice", "2/3")
    halves = [path.name for path in out.glob(".*.tmp")]
    assert len(halves) == 1 and halves[0].startswith(".train-000004.tar.")
    (out / ".train-000000.tar.elsewhere.7.tmp").write_bytes(b"another slice at work")  # as if slice 1 were still running

    with pytest.raises(UserError) as error:
        world(out, "--merge")
    assert str(error.value) == (
        f"{out} lacks 2 of 8 shards of slice 2/3 (train-000004.tar, test-000001.tar); run it again, or the command without "
        "--merge, which packs what is missing."
    )
    assert (out / halves[0]).exists() and (out / ".train-000000.tar.elsewhere.7.tmp").exists(), "a refused merge removes nothing"

    monkeypatch.setattr(build.ShardWriter, "write", lambda self, r: (written.append(r.key), original(self, r))[1])
    world(out, "--slice", "2/3")
    assert "train-000005" not in written and "train-000020" in written and "test-000005" in written
    assert not (out / halves[0]).exists() and (out / ".train-000000.tar.elsewhere.7.tmp").exists()
    world(out, "--merge")
    assert contents(out) == whole


def test_the_command_without_merge_packs_the_rest(whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    world(out, "--slice", "2/4")
    before = {file: (out / file).stat().st_mtime_ns for file in Slice(2, 4).share(FILES)}
    world(out)
    assert contents(out) == whole
    assert {file: (out / file).stat().st_mtime_ns for file in before} == before


def test_a_merge_names_the_slices_that_are_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"holds no slices to merge; pack them first with --slice 1/N"):
        world(out, "--merge")
    assert not out.exists()
    world(out, "--slice", "2/4")
    with pytest.raises(UserError) as error:
        world(out, "--merge")
    assert str(error.value) == (
        f"{out} lacks 6 of 8 shards of slices 1/4, 3/4, 4/4 (train-000000.tar, train-000002.tar, train-000003.tar and 3 more); run "
        "them again, or the command without --merge, which packs what is missing."
    )
    world(out, "--slice", "1/2")  # 1/2 holds none of 2/4: shards 0, 2, 4, 6 beside 1, 5; of which count the rest is remains open
    with pytest.raises(UserError, match=r"lacks 2 of 8 shards \(train-000003.tar, test-000001.tar\); run their slices again"):
        world(out, "--merge")


def test_a_shard_made_with_another_tokenizer_is_not_finished(whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        world(out, "--slice", f"{number}/2")
    noted = out / ".journal" / "dev-000000.tar.json"
    entry = json.loads(noted.read_text())
    noted.write_text(json.dumps(entry | {"tokenizer": "of another version"}))
    with pytest.raises(UserError, match=r"lacks 1 of 8 shards of slice 2/2 \(dev-000000.tar\)"):
        world(out, "--merge")
    world(out, "--slice", "2/2")
    world(out, "--merge")
    assert contents(out) == whole


def test_slices_of_other_arguments_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "out"
    world(out, "--slice", "1/2")
    with pytest.raises(UserError, match=r"unfinished run with other arguments or inputs \(seed\)"):
        world(out, "--slice", "2/2", "--seed", "7")


def test_slice_merge_and_overwrite_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pair in (["--slice", "1/2", "--merge"], ["--slice", "1/2", "--overwrite"], ["--merge", "--overwrite"]):
        with pytest.raises(SystemExit):
            world(tmp_path / "out", *pair)
        assert "not allowed with argument" in capsys.readouterr().err
