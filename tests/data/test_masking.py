"""Maskings: what may be chosen, how often, whole spans, forced choices; corruption 80/10/10."""

import pytest
import torch

from tagsds.data.masking import (
    choose_by_structure,
    choose_pieces,
    choose_regions,
    corrupt,
    ordinary_pieces,
    span_members,
)
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary

VOCAB = Vocabulary(size=50, pad=0, unk=10, cls=11, sep=12, mask=13)
DRAWS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def members_of(captions: list[list[list[int]]], length: int) -> torch.Tensor:
    """[[positions of span 0, positions of span 1, ...] of caption 0, ...] -> bool [B, S, length], by loops."""
    most = max(1, *(len(spans) for spans in captions))
    members = torch.zeros(len(captions), most, length, dtype=torch.bool)
    for b, spans in enumerate(captions):
        for s, positions in enumerate(spans):
            members[b, s, positions] = True
    return members


def draw(spans: list[list[int]], length: int, draws: int = DRAWS, seed: int = 0, width: int | None = None):
    """bool [draws, width] of one caption."""
    members = members_of([spans], width or length)
    return choose_by_structure(members, torch.tensor([length]), draws, generator(seed))[0]


def close(frequency: float, probability: float, draws: int = DRAWS) -> bool:
    """Within five standard deviations."""
    return abs(frequency - probability) < 5 * (probability * (1 - probability) / draws) ** 0.5 + 1e-12


# --- spans ---------------------------------------------------------------------------------------------------------


def test_span_members():
    # caption 0: span 0 = {1, 2}, span 1 = {2, 4}; caption 1: none; caption 2: span 0 = {3}
    rows = torch.tensor([[0, 1], [0, 2], [1, 2], [1, 4], [0, 3]], dtype=torch.int32)
    members = span_members(Ragged(rows, torch.tensor([4, 0, 1])), 6)
    assert members.dtype == torch.bool
    assert torch.equal(members, members_of([[[1, 2], [2, 4]], [], [[3]]], 6))


def test_span_members_of_captions_without_spans_and_cut_short():
    nothing = Ragged(torch.empty(0, 2, dtype=torch.int32), torch.tensor([0, 0]))
    assert torch.equal(span_members(nothing, 5), torch.zeros(2, 1, 5, dtype=torch.bool))
    cut = Ragged(torch.tensor([[0, 2], [0, 7], [1, 9]]), torch.tensor([3]))
    assert torch.equal(span_members(cut, 5), members_of([[[2], []]], 5))


def test_spans_are_chosen_whole():
    spans = [[1, 2, 3], [5, 6], [8]]
    chosen = draw(spans, length=10)
    for span in spans:
        assert (chosen[:, span].all(dim=1) == chosen[:, span].any(dim=1)).all()
    assert not chosen[:, [0, 4, 7, 9]].any()  # [CLS], words of no span, [SEP]


def test_disjoint_spans_have_the_position_probability_and_are_forced_evenly():
    chosen = draw([[1, 2, 3], [5, 6]], length=8)
    # each is drawn with 0.15; none with 0.85^2, and then either is forced with 1/2
    expected = 0.15 + 0.85**2 / 2
    assert close(chosen[:, 1].float().mean().item(), expected)
    assert close(chosen[:, 5].float().mean().item(), expected)
    assert close((chosen[:, 1] & chosen[:, 5]).float().mean().item(), 0.15**2)  # both: never by force
    assert chosen.any(dim=1).all()


def test_overlap_divides_the_probability():
    # position 2 is held by both spans: 0.15 / 2. Span 0 = {1, 2}: (0.15 + 0.075) / 2; span 1 = {2}: 0.075
    chosen = draw([[1, 2], [2]], length=5)
    p, q = (0.15 + 0.075) / 2, 0.075
    forced = (1 - p) * (1 - q) / 2
    assert close(chosen[:, 1].float().mean().item(), p + forced)
    assert close((chosen[:, 2] & ~chosen[:, 1]).float().mean().item(), (1 - p) * q + forced)
    assert chosen[:, 2].all()  # whichever span it was


def test_three_overlapping_spans():
    # object {1}, attribute {2}, relation {1, 2, 3}: positions 1 and 2 held twice, 3 once
    chosen = draw([[1], [2], [1, 2, 3]], length=5)
    node, relation = 0.075, (0.075 + 0.075 + 0.15) / 3
    nothing = (1 - node) ** 2 * (1 - relation)
    assert close(chosen[:, 3].float().mean().item(), relation + nothing / 3)
    one = chosen[:, 1] & ~chosen[:, 2]  # the object alone
    assert close(one.float().mean().item(), node * (1 - node) * (1 - relation) + nothing / 3)


def test_a_single_span_is_always_forced():
    chosen = draw([[2, 3]], length=6, draws=50)
    assert chosen.tolist() == [[False, False, True, True, False, False]] * 50


def test_force_takes_existing_spans_only():
    # caption 1 has one span, the table three: the two empty rows must not be forced
    members = members_of([[[1], [2], [3]], [[4]]], 7)
    chosen = choose_by_structure(members, torch.tensor([6, 6]), 500, generator())
    assert chosen[1, :, 4].all() and chosen[1].sum() == 500
    assert chosen[0].any(dim=1).all()


def test_a_caption_without_spans_falls_back_to_pieces():
    chosen = draw([], length=6, width=9)
    words = chosen[:, 1:5]
    assert not chosen[:, [0, 5, 6, 7, 8]].any() and words.any(dim=1).all()
    # 0.15, or all four missed and this one forced
    for position in range(4):
        assert close(words[:, position].float().mean().item(), 0.15 + 0.85**4 / 4)
    assert close((words[:, 0] & words[:, 1]).float().mean().item(), 0.15**2)


def test_rows_of_one_batch_do_not_mix():
    """Captions with and without spans, short ones and a bare [CLS] [SEP] side by side."""
    members = members_of([[[1, 2]], [], [], [[3]]], 8)
    lengths = torch.tensor([8, 5, 2, 6])
    chosen = choose_by_structure(members, lengths, 2000, generator())
    assert chosen[0, :, 1:3].all() and chosen[0].sum() == 4000
    assert chosen[1, :, 1:4].any(dim=1).all() and not chosen[1, :, 4:].any()
    assert not chosen[2].any()
    assert chosen[3, :, 3].all() and chosen[3].sum() == 2000


def test_positions_on_specials_and_padding_are_ignored():
    # a span on [CLS] and [SEP], one on padding, one half on [SEP]; and a caption whose only span is on [SEP]
    members = members_of([[[0, 4], [6], [3, 4]], [[4]]], 8)
    chosen = choose_by_structure(members, torch.tensor([5, 5]), 2000, generator())
    assert not chosen[:, :, [0, 4, 5, 6, 7]].any()
    assert chosen[0, :, 3].all() and chosen[0].sum() == 2000
    assert chosen[1, :, 1:4].any(dim=1).all()  # no span left: single pieces


def test_other_probability():
    chosen = choose_by_structure(members_of([[[1], [2]]], 4), torch.tensor([4]), DRAWS, generator(), probability=0.6)
    assert close(chosen[0, :, 1].float().mean().item(), 0.6 + 0.4**2 / 2)
    assert (
        choose_by_structure(members_of([[[1], [2]]], 4), torch.tensor([4]), 50, generator(), probability=1.0).sum()
        == 100
    )


def test_maskings_are_independent_and_replayable():
    spans = [[1], [2], [3], [4]]
    assert torch.equal(draw(spans, 6, seed=3), draw(spans, 6, seed=3))
    assert not torch.equal(draw(spans, 6, seed=3), draw(spans, 6, seed=4))
    chosen = draw(spans, 6).float()
    first, second = chosen[:-1, 1], chosen[1:, 1]
    assert close((first * second).mean().item(), chosen[:, 1].mean().item() ** 2)


# --- single pieces and regions -------------------------------------------------------------------------------------


def test_choose_pieces():
    lengths = torch.tensor([2, 3, 7]).repeat(DRAWS)
    chosen = choose_pieces(lengths, 9, generator()).view(DRAWS, 3, 9)
    assert not chosen[:, 0].any()  # no word piece, nothing chosen
    assert chosen[:, 1, 1].all() and chosen[:, 1].sum() == DRAWS  # one word piece: forced
    assert not chosen[:, 2, [0, 6, 7, 8]].any() and chosen[:, 2].any(dim=1).all()
    for position in range(1, 6):
        assert close(chosen[:, 2, position].float().mean().item(), 0.15 + 0.85**5 / 5)
    assert torch.equal(choose_pieces(lengths, 9, generator(5)), choose_pieces(lengths, 9, generator(5)))


def test_choose_regions():
    lengths = torch.tensor([1, 3, 0, 6]).repeat(DRAWS)
    chosen = choose_regions(lengths, generator())
    assert chosen.shape == (DRAWS * 10,) and chosen.dtype == torch.bool
    chosen = chosen.view(DRAWS, 10)
    assert chosen[:, 0].all()
    assert chosen[:, 1:4].any(dim=1).all() and chosen[:, 4:].any(dim=1).all()
    for region, count in ((1, 3), (3, 3), (4, 6), (9, 6)):
        assert close(chosen[:, region].float().mean().item(), 0.15 + 0.85**count / count)
    assert torch.equal(choose_regions(lengths, generator(5)), choose_regions(lengths, generator(5)))


def test_choose_regions_of_no_images():
    assert choose_regions(torch.empty(0, dtype=torch.int64), generator()).shape == (0,)
    assert choose_regions(torch.tensor([0, 0]), generator()).shape == (0,)


# --- corruption ----------------------------------------------------------------------------------------------------


def test_ordinary_pieces():
    assert ordinary_pieces(VOCAB).tolist() == [*range(1, 10), *range(14, 50)]


def test_corrupt_80_10_10():
    draws = 100_000
    ids, chosen = torch.full((draws,), 20), torch.ones(draws, dtype=torch.bool)
    out = corrupt(ids, chosen, VOCAB, generator())
    # the random piece is the piece itself once in 45
    assert close((out == VOCAB.mask).float().mean().item(), 0.8, draws)
    assert close((out == 20).float().mean().item(), 0.1 + 0.1 / 45, draws)
    others = out[(out != VOCAB.mask) & (out != 20)]
    assert close(others.numel() / draws, 0.1 * 44 / 45, draws)
    counts = torch.bincount(others, minlength=VOCAB.size)
    assert not counts[[VOCAB.pad, VOCAB.unk, VOCAB.cls, VOCAB.sep, VOCAB.mask]].any()
    ordinary = counts[ordinary_pieces(VOCAB)[ordinary_pieces(VOCAB) != 20]]
    for count in ordinary.tolist():
        assert close(count / draws, 0.1 / 45, draws)


def test_corrupt_touches_chosen_positions_only():
    torch.manual_seed(0)
    ids = torch.randint(14, 50, (6, 4, 30))
    chosen = torch.rand(6, 4, 30) < 0.4
    before = ids.clone()
    out = corrupt(ids, chosen, VOCAB, generator())
    assert out.dtype == torch.int64 and torch.equal(ids, before)
    assert torch.equal(out[~chosen], ids[~chosen]) and (out[chosen] != ids[chosen]).any()
    assert torch.equal(out, corrupt(ids, chosen, VOCAB, generator()))
    assert not torch.equal(out, corrupt(ids, chosen, VOCAB, generator(1)))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_corrupt_nothing(shape):
    ids = torch.zeros(shape, dtype=torch.int64)
    assert corrupt(ids, torch.zeros(shape, dtype=torch.bool), VOCAB, generator()).shape == shape
