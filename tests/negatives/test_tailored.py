"""Tailored negatives: refilling by frequency, writing, and every filter on what it must and must not drop."""

import itertools
import math

import pytest
import torch

from tagsds.data.vocabulary import Vocabulary
from tagsds.negatives.tailored import filter_candidates, refill, write

VOCAB = Vocabulary(size=30, pad=0, unk=1, cls=2, sep=3, mask=4)
PAD, CLS, SEP = VOCAB.pad, VOCAB.cls, VOCAB.sep
SPECIAL = [0, 1, 2, 3, 4]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sentence(*words: int, length: int = 7) -> list[int]:
    row = [CLS, *words, SEP]
    return row + [PAD] * (length - len(row))


def kept(candidates, ids, annotated) -> tuple[list[list[bool]], dict[str, int]]:
    """Lists in, lists out."""
    result = filter_candidates(torch.tensor(candidates), torch.tensor(ids), torch.tensor(annotated), VOCAB)
    assert result.keep.dtype == torch.bool
    assert all(count.shape == () and count.dtype == torch.int64 for count in result.counts.values())
    return result.keep.tolist(), {name: int(count) for name, count in result.counts.items()}


# --- refill --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 1.5, 2.0])
def test_refill_follows_the_softmax(tau):
    draws = 100_000
    logits = torch.full((2, 30), -1e4)
    logits[0, [5, 6, 7]] = torch.tensor([0.0, 1.0, 3.0])
    logits[1, [9, 29]] = torch.tensor([2.0, 0.0])
    drawn = refill(logits, VOCAB, tau, draws, generator())
    assert drawn.shape == (2, draws) and drawn.dtype == torch.int64
    for row, exponents in ((0, {5: 0.0, 6: 1.0, 7: 3.0}), (1, {9: 2.0, 29: 0.0})):
        total = sum(math.exp(e / tau) for e in exponents.values())
        for piece, exponent in exponents.items():
            p = math.exp(exponent / tau) / total
            assert abs((drawn[row] == piece).float().mean().item() - p) < 5 * (p * (1 - p) / draws) ** 0.5
        assert set(drawn[row].tolist()) == set(exponents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_refill_never_draws_a_special_piece(dtype):
    logits = torch.zeros(50, 30, dtype=dtype)
    logits[:, SPECIAL] = 100.0  # by far the likeliest
    before = logits.clone()
    drawn = refill(logits, VOCAB, 1.5, 400, generator())
    assert torch.equal(logits, before)
    counts = torch.bincount(drawn.flatten(), minlength=30)
    assert not counts[SPECIAL].any()
    assert (counts[5:] > 0).all()


@pytest.mark.parametrize("dtype, high", [(torch.float16, 2048.0), (torch.bfloat16, 256.0)])
def test_refill_is_float32_inside(dtype, high):
    # two apart; divided by 1.5 in half precision the difference 4/3 would be rounded to 1 (fp16) or 2 (bf16)
    logits = torch.full((1, 30), -1e4, dtype=dtype)
    logits[0, 5], logits[0, 6] = high, high - 2
    p = 1 / (1 + math.exp(-4 / 3))
    share = (refill(logits, VOCAB, 1.5, 50_000, generator()) == 5).float().mean().item()
    assert abs(share - p) < 0.01


def test_draws_are_independent_with_replacement():
    logits = torch.full((1, 30), -1e4)
    logits[0, [5, 6]] = 0.0
    drawn = refill(logits, VOCAB, 1.0, 50_000, generator())[0] == 5
    both = (drawn[:-1] & drawn[1:]).float().mean().item()
    assert abs(both - 0.25) < 0.01
    assert refill(logits, VOCAB, 1.0, 20, generator()).shape == (1, 20)  # more draws than likely pieces


def test_refill_is_replayable_and_takes_no_position():
    logits = torch.randn(4, 30, generator=generator())
    assert torch.equal(refill(logits, VOCAB, 1.5, 9, generator(1)), refill(logits, VOCAB, 1.5, 9, generator(1)))
    assert not torch.equal(refill(logits, VOCAB, 1.5, 9, generator(1)), refill(logits, VOCAB, 1.5, 9, generator(2)))
    assert refill(logits[:0], VOCAB, 1.5, 9, generator()).shape == (0, 9)
    assert not refill(logits.requires_grad_(), VOCAB, 1.5, 9, generator()).requires_grad


# --- write ---------------------------------------------------------------------------------------------------------


def test_write_by_hand():
    ids = torch.tensor([[2, 10, 11, 3], [2, 12, 3, 0]])
    chosen = torch.tensor(
        [
            [[False, True, True, False], [False, False, True, False]],
            [[False, True, False, False], [False, False, False, False]],
        ]
    )
    # chosen.nonzero(): (0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 0, 1); two draws each
    pieces = torch.tensor([[20, 21], [22, 23], [24, 25], [26, 27]])
    assert write(ids, chosen, pieces).tolist() == [
        [[2, 20, 22, 3], [2, 21, 23, 3], [2, 10, 24, 3], [2, 10, 25, 3]],
        [[2, 26, 3, 0], [2, 27, 3, 0], [2, 12, 3, 0], [2, 12, 3, 0]],
    ]
    assert ids.tolist() == [[2, 10, 11, 3], [2, 12, 3, 0]]


def test_write_equals_a_literal_loop():
    torch.manual_seed(0)
    ids, chosen = torch.randint(5, 30, (3, 8)), torch.rand(3, 4, 8) < 0.3
    pieces = torch.randint(5, 30, (int(chosen.sum()), 6))
    rows = iter(pieces.tolist())
    expected = ids[:, None, None].repeat(1, 4, 6, 1)
    for b, m, position in itertools.product(range(3), range(4), range(8)):
        if chosen[b, m, position]:
            for r, piece in enumerate(next(rows)):
                expected[b, m, r, position] = piece
    assert torch.equal(write(ids, chosen, pieces), expected.view(3, 24, 8))


def test_write_nothing():
    ids = torch.tensor([[2, 3]])
    out = write(ids, torch.zeros(1, 2, 2, dtype=torch.bool), torch.empty(0, 3, dtype=torch.int64))
    assert out.tolist() == [[[2, 3]] * 6]


# --- filters -------------------------------------------------------------------------------------------------------

CAPTION = sentence(10, 11, 12)
ANNOTATED = [CAPTION, sentence(13, 14), sentence(10, 15, 12)]


def test_new_and_false_sentences_stay():
    candidates = [sentence(20, 11, 12), sentence(10, 21, 12), sentence(20, 21, 22)]
    keep, counts = kept([candidates], [CAPTION], [ANNOTATED])
    assert keep == [[True, True, True]]
    assert counts == {"written": 3, "not_annotated": 3, "distinct": 3, "false_of_image": 3}


def test_the_caption_itself_and_other_annotated_captions_are_dropped():
    candidates = [CAPTION, sentence(10, 15, 12), sentence(10, 20, 12)]
    keep, counts = kept([candidates], [CAPTION], [ANNOTATED])
    assert keep == [[False, False, True]]
    assert counts == {"written": 3, "not_annotated": 1, "distinct": 1, "false_of_image": 1}


def test_annotated_captions_of_other_widths():
    longer = [sentence(10, 15, 12, length=12), sentence(20, 20, 20, 20, 20, 20, length=12)]
    keep, counts = kept([[sentence(10, 15, 12), sentence(10, 20, 12)]], [CAPTION], [longer])
    # the second: 20 occurs in the longer caption, so it falls to the third filter, not to the first
    assert keep == [[False, False]] and counts["not_annotated"] == 1 and counts["distinct"] == 1
    shorter = [sentence(10, 15, 12, length=5)]
    keep, counts = kept([[sentence(10, 15, 12), sentence(10, 20, 12)]], [CAPTION], [shorter])
    assert keep == [[False, True]] and counts["not_annotated"] == 1


def test_a_prefix_of_an_annotated_caption_is_not_equal_to_it():
    # same first pieces, but the annotated one goes on where the candidate ends
    annotated = [[CLS, 10, 21, 12, SEP, PAD, PAD, PAD], [CLS, 10, 20, 12, 9, SEP, PAD, PAD]]
    _, counts = kept([[sentence(10, 20, 12), sentence(10, 22, 12)]], [CAPTION], [annotated])
    assert counts["not_annotated"] == 2


def test_rows_of_pads_match_nothing():
    annotated = [CAPTION, [PAD] * 7, [PAD] * 7]
    keep, _ = kept([[sentence(10, 20, 12), sentence(20, 11, 12)]], [CAPTION], [annotated])
    assert keep == [[True, True]]


def test_repeats_keep_the_first_in_order():
    a, b = sentence(10, 20, 12), sentence(10, 21, 12)
    keep, counts = kept([[a, b, a, a, b, sentence(20, 11, 12)]], [CAPTION], [ANNOTATED])
    assert keep == [[True, True, False, False, False, True]]
    assert counts == {"written": 6, "not_annotated": 6, "distinct": 3, "false_of_image": 3}


def test_the_same_sentence_of_another_caption_is_no_repeat():
    a = sentence(10, 20, 12)
    keep, counts = kept([[a, a], [a, a]], [CAPTION, CAPTION], [ANNOTATED, ANNOTATED])
    assert keep == [[True, False], [True, False]] and counts["distinct"] == 2


def test_changes_to_words_of_the_images_captions_are_dropped():
    candidates = [
        sentence(13, 11, 12),  # 13 is said of the image elsewhere
        sentence(13, 14, 12),  # both are
        sentence(11, 11, 12),  # a word of the caption itself, at another place
        sentence(13, 20, 12),  # one is not: false of the image
        sentence(15, 11, 20),
    ]
    keep, counts = kept([candidates], [CAPTION], [ANNOTATED])
    assert keep == [[False, False, False, True, True]]
    assert counts == {"written": 5, "not_annotated": 5, "distinct": 5, "false_of_image": 2}


def test_words_of_another_images_captions_do_not_count():
    candidate = sentence(13, 11, 12)
    other = [CAPTION, sentence(20, 21), [PAD] * 7]
    keep, _ = kept([[candidate], [candidate]], [CAPTION, CAPTION], [ANNOTATED, other])
    assert keep == [[False], [True]]


def test_an_unchanged_candidate_is_dropped_even_if_the_caption_is_not_annotated():
    keep, counts = kept([[CAPTION, sentence(10, 20, 12)]], [CAPTION], [[sentence(13, 14)]])
    assert keep == [[False, True]]
    assert counts == {"written": 2, "not_annotated": 2, "distinct": 2, "false_of_image": 1}


def test_nothing_comes_back_when_all_are_dropped():
    keep, counts = kept([[CAPTION, CAPTION, sentence(13, 11, 12)]], [CAPTION], [ANNOTATED])
    assert keep == [[False, False, False]]
    assert counts == {"written": 3, "not_annotated": 1, "distinct": 1, "false_of_image": 0}


def test_filters_equal_literal_loops_on_many_random_candidates():
    torch.manual_seed(0)
    captions, written, length = 12, 60, 6
    # few pieces, so that copies, repeats and words of the image abound
    ids = torch.randint(5, 12, (captions, length))
    ids[:, 0], ids[:, -1] = CLS, SEP
    annotated = torch.cat([ids[:, None], torch.randint(5, 12, (captions, 4, length))], dim=1)
    annotated[:, 1:, 0], annotated[:, 1:, -1] = CLS, SEP
    chosen = torch.rand(captions, written // 3, length) < 0.3
    chosen[:, :, [0, -1]] = False
    candidates = write(ids, chosen, torch.randint(5, 16, (int(chosen.sum()), 3)))
    annotated[3:6, 2:] = PAD

    left = {"not_annotated": 0, "distinct": 0, "false_of_image": 0}
    expected = torch.zeros(captions, written, dtype=torch.bool)
    for b in range(captions):
        gold = [row for row in annotated[b].tolist() if any(row)]
        said = {piece for row in gold for piece in row}
        seen = []
        for c, row in enumerate(candidates[b].tolist()):
            if row in gold:
                continue
            left["not_annotated"] += 1
            if row in seen:
                continue
            seen.append(row)
            left["distinct"] += 1
            changed = [new for new, old in zip(row, ids[b].tolist()) if new != old]
            if all(piece in said for piece in changed):
                continue
            left["false_of_image"] += 1
            expected[b, c] = True

    result = filter_candidates(candidates, ids, annotated, VOCAB)
    assert torch.equal(result.keep, expected)
    assert {name: int(count) for name, count in result.counts.items()} == {"written": captions * written, **left}
    assert 0 < left["false_of_image"] < left["distinct"] < left["not_annotated"] < captions * written
