"""What resumes besides the weights: the best figure, patience."""

from __future__ import annotations

import pytest

from tagsds.engine.state import TrainState


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
    state = TrainState(30, 480, "rsum", 3.0, 20, 1, True, 2, 1, pairs=4, slots=6, accumulation=6, ranks=2, zero_stage=3)
    other = TrainState()
    other.restore(state.as_dict())
    assert other == state
