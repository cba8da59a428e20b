"""What resumes besides the weights: the best figure, patience, the format of a checkpoint, which folders are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagsds.engine.checkpoint import save
from tagsds.engine.state import VERSION, TrainState
from tagsds.errors import UserError
from tagsds.ranks import World


def judged(values: list[float], patience: int) -> tuple[TrainState, list[bool]]:
    """A validation every 10 steps, until it is stopped."""
    state, better = TrainState(), []
    for value in values:
        state.step += 10
        better.append(state.judge("rsum", value, patience))
        if state.stopped:
            break
    return state, better


def test_the_best_is_the_earlier_of_equal_ones() -> None:
    state, better = judged([1.0, 3.0, 2.0, 3.0, 2.5], patience=0)
    assert better == [True, True, False, False, False]
    assert (state.best, state.best_step, state.not_better, state.stopped) == (3.0, 20, 3, False)


@pytest.mark.parametrize(("patience", "end"), [(1, 30), (2, 40), (3, 60), (4, 60)])
def test_patience_counts_validations_without_a_better_one(patience: int, end: int) -> None:
    """A better one at step 50 sets the count back."""
    state, _ = judged([1.0, 3.0, 2.0, 3.0, 4.0, 0.0], patience)
    assert (state.step, state.stopped) == (end, end < 60)


def test_another_figure_begins_anew() -> None:
    state, _ = judged([1.0, 3.0, 2.0], patience=2)
    state.step = 40
    assert state.judge("rsum of 100 images", 0.5, 2)
    assert (state.best, state.best_step, state.not_better) == (0.5, 40, 0)


def test_all_of_it_comes_back() -> None:
    state = TrainState(30, 480, "rsum", 3.0, 20, 1, True, ranks=2, zero_stage=3)
    other = TrainState(ranks=2, zero_stage=3)
    other.check(state.as_dict(), Path("step30"), Path("run"))
    other.restore(state.as_dict())
    assert other == state


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        ({"step": 4, "ranks": 1, "zero_stage": 1}, "format 1, from before the discrimination head's order .* a new run with init="),
        ({}, "format 1, from before"),
        (TrainState(version=VERSION + 1).as_dict(), f"format {VERSION + 1}, and this version writes {VERSION}"),
        (TrainState(ranks=2, zero_stage=1).as_dict(), "written with ranks=2 and cannot be read with ranks=1"),
        (TrainState(ranks=1, zero_stage=2).as_dict(), "written with zero_stage=2 and cannot be read with zero_stage=1"),
    ],
    ids=["older", "without-about", "newer", "ranks", "zero-stage"],
)
def test_a_checkpoint_that_cannot_go_on_is_refused(saved: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainState(ranks=1, zero_stage=1).check(saved, Path("run/checkpoints/step4"), Path("run"))


class Engine:
    """Writes folders as DeepSpeed does."""

    def save_checkpoint(self, folder: str, tag: str, client_state: dict, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir(parents=True, exist_ok=True)
        (Path(folder) / tag / "client").write_text(str(client_state["tagsds"]["step"]))


def test_rotation_keeps_what_resuming_needs(tmp_path: Path) -> None:
    """A kill in the middle of step 8 leaves its folder behind; resumed from step 4, the run must not take it for its newest."""
    folder = tmp_path / "checkpoints"
    for step in (2, 4):
        assert save(Engine(), tmp_path, TrainState(step=step), 2, World()) == 2
    (folder / "step8").mkdir()
    assert save(Engine(), tmp_path, TrainState(step=6), 1, World()) == 6
    assert (folder / "latest").read_text() == "step6" and (folder / "step6" / "about.json").is_file()
    assert sorted(path.name for path in folder.glob("step*")) == ["step6", "step8"]
