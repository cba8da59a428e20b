"""Positives: an endless walk through permutations, cut into micro-batches."""

from tagsds.data.sampler import PositiveSampler
from tagsds.draw import Draw


def walk(sampler: PositiveSampler, steps: int, slots: int) -> list[int]:
    """Everything that is drawn, in the order of (step, slot)."""
    return [int(c) for step in range(steps) for slot in range(slots) for c in sampler.at(Draw(0, step, slot))]


def test_each_epoch_is_a_permutation():
    # 35 captions, 2 slots x 5: 3.5 steps an epoch, so a border falls between the slots of one step
    drawn = walk(PositiveSampler(35, 5, 2, seed=1), 14, 2)
    epochs = [drawn[i : i + 35] for i in range(0, 140, 35)]
    assert all(sorted(epoch) == list(range(35)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != list(range(35))


def test_border_inside_a_micro_batch():
    # 7 captions, batch 4: batch 1 holds the last 3 of epoch 0 and the first of epoch 1
    drawn = walk(PositiveSampler(7, 4, 1, seed=1), 7, 1)
    assert all(sorted(drawn[i : i + 7]) == list(range(7)) for i in range(0, 28, 7))


def test_batch_larger_than_the_corpus():
    drawn = walk(PositiveSampler(3, 10, 1, seed=1), 3, 1)
    assert all(sorted(drawn[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))


def test_pure_function_of_the_draw():
    expected = walk(PositiveSampler(11, 3, 2, seed=4), 40, 2)
    fresh = PositiveSampler(11, 3, 2, seed=4)
    order = [(step, slot) for step in reversed(range(40)) for slot in (1, 0)]  # jumps back over many epochs
    for step, slot in order:
        first = (step * 2 + slot) * 3
        assert fresh.at(Draw(99, step, slot)).tolist() == expected[first : first + 3]
    assert PositiveSampler(11, 3, 2, seed=4).at(Draw(0, 39, 1)).tolist() == expected[-3:]  # resumed there
    assert walk(PositiveSampler(11, 3, 2, seed=5), 40, 2) != expected


def test_two_accumulations_equal_two_ranks():
    """slot = rank * accumulation + micro-batch: the slots of a step are the same set however they are shared out."""
    one_rank = PositiveSampler(50, 4, 2, seed=7)
    rank_a, rank_b = PositiveSampler(50, 4, 2, seed=7), PositiveSampler(50, 4, 2, seed=7)
    for step in range(20):
        alone = [one_rank.at(Draw(0, step, 0 * 2 + micro)).tolist() for micro in range(2)]
        ranks = [rank_a.at(Draw(0, step, 0 * 1 + 0)).tolist(), rank_b.at(Draw(0, step, 1 * 1 + 0)).tolist()]
        assert alone == ranks
