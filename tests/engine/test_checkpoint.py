"""Checkpoint folders: whole or not there, checked when they are read, the last good one untouched by a save that fails."""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tagsds.engine import writer as module
from tagsds.engine.checkpoint import Checkpoints, digest_of
from tagsds.engine.resume import find, keep_true_pairs
from tagsds.engine.state import VERSION, TrainState
from tagsds.engine.writer import on_host
from tagsds.errors import UserError
from tagsds.ranks import World
from tagsds.training_settings import BatchConfig
from tests.engine.stored import Engine, saved


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").glob("step*"))


def test_what_is_written_is_found(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    found = find(tmp_path, World())
    assert found is not None and found.step == 4
    assert torch.load(found.folder / "model.pt")["weights"].tolist() == [4.0] * 3000
    assert set(found.about["files"]) == {"model.pt", "optimiser.pt"}
    assert find(tmp_path / "another", World()) is None


def test_the_state_is_that_of_the_moment_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on and changes the tensors while the thread writes them."""
    live = torch.zeros(4)
    state = {"part": live[:2], "nested": [{"whole": live}], "number": 7}
    copy = on_host(state)
    live.fill_(1.0)
    assert copy["part"].tolist() == [0.0, 0.0] and copy["nested"][0]["whole"].tolist() == [0.0] * 4 and copy["number"] == 7
    assert copy["part"].untyped_storage().nbytes() == 8, "a slice does not carry its whole storage along"


def test_rotation_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    """A kill in the middle of step 8 leaves its folder behind; resumed from step 4, the run must not take it for its newest."""
    saved(tmp_path, 2, 4)
    (tmp_path / "checkpoints" / "step8").mkdir()
    (tmp_path / "checkpoints" / "step5.saving").mkdir()
    checkpoints = Checkpoints(Engine(), tmp_path, World(), keep=1)
    checkpoints.begin(TrainState(step=6, best_step=2))
    assert checkpoints.settle() == 6 and checkpoints.settle() is None
    assert names(tmp_path) == ["step2", "step6", "step8"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step6"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda folder: damage(folder / "model.pt"), "model.pt has another sha256 than about.json says"),
        (lambda folder: (folder / "model.pt").write_bytes(b"PK"), "model.pt has 2 bytes where about.json says"),
        (lambda folder: (folder / "optimiser.pt").unlink(), "optimiser.pt cannot be read"),
        (lambda folder: (folder / "about.json").write_bytes(b"\xff"), "about.json cannot be read"),
        (lambda folder: (folder / "about.json").write_text("[" * 100000), "about.json cannot be read"),
        (lambda folder: (folder / "about.json").unlink(), "about.json cannot be read"),
        (lambda folder: damage(folder / "about.json"), "about.json cannot be read"),
    ],
    ids=["flipped", "cut", "gone", "no-text", "nested", "no-about", "flipped-about"],
)
def test_a_damaged_one_is_named_and_the_one_before_it_taken(tmp_path: Path, capsys, break_it, sentence: str) -> None:
    saved(tmp_path, 2, 4)
    break_it(tmp_path / "checkpoints" / "step4")
    found = find(tmp_path, World())
    said = capsys.readouterr().err
    assert found is not None and found.step == 2 and sentence in said and "Going on from step2" in said
    break_it(tmp_path / "checkpoints" / "step2")
    with pytest.raises(UserError, match="No whole checkpoint is left"):
        find(tmp_path, World())


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (1, "format 1, from before the discrimination head's order .* a new run with init="),
        (VERSION + 1, f"format {VERSION + 1}, and this version writes {VERSION}"),
    ],
)
def test_another_format_is_refused(tmp_path: Path, version: int, sentence: str) -> None:
    saved(tmp_path, 2)
    path = tmp_path / "checkpoints" / "step2" / "about.json"
    about = json.loads(path.read_text()) | {"version": version}
    path.write_text(json.dumps(about | {"check": digest_of(about)}))
    with pytest.raises(UserError, match=sentence):
        find(tmp_path, World())


def test_a_save_that_fails_costs_only_itself(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 2)

    def full(state: Any, stream: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "save", full)
        checkpoints.begin(TrainState(step=4))
        assert checkpoints.settle() is None and checkpoints.failed == "rank 0: No space left on device"
    said = capsys.readouterr().err
    assert "checkpoint of step4 could not be written" in said and "the last whole one is step2" in said
    assert names(tmp_path) == ["step2"]
    checkpoints.begin(TrainState(step=6))
    assert checkpoints.settle() == 2 and checkpoints.failed == "" and names(tmp_path) == ["step2", "step6"]


def test_a_disk_that_is_really_full(tmp_path: Path, capsys) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here (that needs root): a full disk is only imitated")
    try:
        checkpoints = saved(disk, 2)  # 2 x 12 kB of weights
        assert names(disk) == ["step2"]
        (disk / "ballast").write_bytes(b"0" * 20_000)
        checkpoints.begin(TrainState(step=4))
        assert checkpoints.settle() is None
        assert "No space left" in capsys.readouterr().err
        found = find(disk, World())
        assert names(disk) == ["step2"] and found is not None and found.step == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Ranks(World):
    def __init__(self, size: int) -> None:
        super().__init__(0, size)


@pytest.mark.parametrize(
    ("pairs", "ranks", "accumulation", "sentence"),
    [
        (4, 2, 3, ""),
        (4, 1, 6, "a step of 4 x 3 x 2 true pairs (batch.pairs x batch.accumulation x ranks) goes on as 4 x 6 x 1"),
        (4, 3, 2, "goes on as 4 x 2 x 3"),
        (8, 3, 1, "goes on as 8 x 1 x 3"),
        (2, 2, 6, "goes on as 2 x 6 x 2"),
    ],
)
def test_the_true_pairs_of_a_step_are_kept(tmp_path: Path, pairs: int, ranks: int, accumulation: int, sentence: str) -> None:
    """24 true pairs a step: 4 x 3 micro-batches x 2 ranks."""
    found = found_of(tmp_path)
    batch = BatchConfig(pairs=pairs, accumulation=3)  # as the recipe has it
    said = keep_true_pairs(batch, found, Ranks(ranks), whole=True)
    assert batch.accumulation == accumulation and (said == "" if not sentence else sentence in said)


def found_of(output: Path) -> Any:
    checkpoints = Checkpoints(Engine(), output, World(), 0)
    checkpoints.begin(TrainState(step=2, pairs=4, slots=6, ranks=2))
    checkpoints.settle()
    return find(output, World())


def test_what_does_not_divide_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"24 true pairs a step \(6 micro-batches of 4\), which 5 rank.* do not divide"):
        keep_true_pairs(BatchConfig(pairs=4), found_of(tmp_path), Ranks(5), whole=True)
    with pytest.raises(UserError, match=r"accumulation=5 would change the 24 true pairs a step .*6 follows from 1 rank"):
        keep_true_pairs(BatchConfig(pairs=4, accumulation=5), found_of(tmp_path), Ranks(1), whole=True)
    checkpoints = Checkpoints(Engine(), tmp_path / "chain", World(), 0)
    checkpoints.begin(TrainState(step=2, pairs=4, slots=6, ranks=2, accumulation=6))  # begun on one rank, then resumed on two
    checkpoints.settle()
    batch = BatchConfig(pairs=4, accumulation=6)
    keep_true_pairs(batch, find(tmp_path / "chain", World()), Ranks(3), whole=True)
    assert batch.accumulation == 2
    with pytest.raises(UserError, match=r"windows of its own; resume with 2, or raise data.max_gib"):
        keep_true_pairs(BatchConfig(pairs=4), found_of(tmp_path), Ranks(1), whole=False)
