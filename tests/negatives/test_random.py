"""Random negatives: the draw, the choice of the hardest, and the shared form."""

import pytest
import torch

from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.negatives.random import check_size, draw_captions, draw_images, mine_random, mine_shared
from tagsds.scoring.scorer import Scorer
from tests.small_world import caption_ids, model_of, score_of


def bank_of(captions_per_image: list[int]) -> Bank:
    """Indices only: uneven numbers of captions, one region an image."""
    lengths = torch.tensor(captions_per_image)
    total, images = int(lengths.sum()), len(captions_per_image)
    owner = torch.repeat_interleave(torch.arange(images), lengths)
    return Bank(
        tokens=Ragged(torch.zeros(total, dtype=torch.int32), torch.ones(total, dtype=torch.int64)),
        spans=Ragged(torch.zeros(0, 2, dtype=torch.int32), torch.zeros(total, dtype=torch.int64)),
        image_of_caption=owner,
        captions_of_image=Ragged(torch.arange(total), lengths),
        regions=Ragged(torch.zeros(images, 1), torch.ones(images, dtype=torch.int64)),
        boxes=torch.zeros(images, 4),
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, model_of(manifest)


# --- drawing -------------------------------------------------------------------------------------------------------

UNEVEN = [1, 4, 2, 5, 1, 3, 2, 2]  # 20 captions


@pytest.mark.parametrize("count", [1, 3, 7])
def test_images_never_repeat_and_are_never_the_own(count):
    bank = bank_of(UNEVEN)
    own = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 3, 3])
    for seed in range(50):
        drawn = draw_images(bank, own, count, seeded(seed))
        assert drawn.shape == (10, count)
        for row, mine in zip(drawn.tolist(), own.tolist()):
            assert len(set(row)) == count and mine not in row and set(row) <= set(range(8))
    if count == 7:  # all others
        assert sorted(drawn[0].tolist()) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("count", [1, 6, 15])
def test_captions_never_repeat_and_are_never_of_the_own_image(count):
    bank = bank_of(UNEVEN)
    own = torch.tensor([3, 0, 1, 3, 7])
    for seed in range(50):
        drawn = draw_captions(bank, own, count, seeded(seed))
        assert drawn.shape == (5, count)
        for row, mine in zip(drawn.tolist(), own.tolist()):
            assert len(set(row)) == count
            assert all(int(bank.image_of_caption[c]) != mine for c in row)
    if count == 15:  # image 3 has 5 of the 20: all others are drawn
        assert sorted(drawn[0].tolist()) == [c for c in range(20) if not 7 <= c < 12]


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_images_are_uniform():
    """Each of the 7 others equally often, in every row of the batch: chi-square with 6 degrees, 0.999 quantile 22.5."""
    bank, own, rounds = bank_of(UNEVEN), torch.tensor([3, 0, 7]), 4000
    counts = torch.zeros(3, 8)
    first = torch.zeros(3, 8)  # of the first place alone: the order must not matter either
    for seed in range(rounds):
        drawn = draw_images(bank, own, 2, seeded(seed))
        counts.scatter_add_(1, drawn, torch.ones(3, 2))
        first.scatter_add_(1, drawn[:, :1], torch.ones(3, 1))
    for row, mine in enumerate(own.tolist()):
        others = [i for i in range(8) if i != mine]
        assert counts[row, mine] == 0
        assert chi_square(counts[row, others]) < 22.5
        assert chi_square(first[row, others]) < 22.5


def test_captions_are_uniform():
    """Image 3 leaves 15 captions: chi-square with 14 degrees, 0.999 quantile 36.1."""
    bank, own = bank_of(UNEVEN), torch.tensor([0, 3])
    counts = torch.zeros(2, 20)
    for seed in range(4000):
        drawn = draw_captions(bank, own, 3, seeded(seed))
        counts.scatter_add_(1, drawn, torch.ones(2, 3))
    others = [c for c in range(20) if not 7 <= c < 12]
    assert counts[1].sum() == counts[1, others].sum() == 12000
    assert chi_square(counts[1, others]) < 36.1


def test_draws_are_deterministic():
    bank, own = bank_of(UNEVEN), torch.tensor([1, 5])
    for draw in (draw_images, draw_captions):
        assert torch.equal(draw(bank, own, 4, seeded(9)), draw(bank, own, 4, seeded(9)))
        different = {tuple(draw(bank, own, 4, seeded(seed)).flatten().tolist()) for seed in range(20)}
        assert len(different) > 15


def test_corpus_smaller_than_the_number_of_negatives():
    bank = bank_of(UNEVEN)  # 7 other images; 20 - 5 = 15 captions of others in the worst case
    check_size(bank, 7, "shards")
    with pytest.raises(UserError) as error:
        check_size(bank, 8, "some/shards")
    text = str(error.value)
    assert "some/shards" in text and "8" in text and "negatives.count=7" in text
    few_captions = bank_of([6, 1, 1, 1])  # 3 other images; 9 - 6 = 3 captions
    check_size(few_captions, 3, "shards")
    with pytest.raises(UserError):
        check_size(bank_of([1, 5]), 2, "shards")


# --- the hardest ---------------------------------------------------------------------------------------------------


def test_mine_random_keeps_the_true_hardest(corpus):
    bank, model = corpus
    draw, count, keep = Draw(5, 17, 1), 9, 4
    captions = torch.tensor([3, 40, 4])  # 3 and 4 belong to one image
    own = [int(bank.image_of_caption[c]) for c in captions]
    images, texts = mine_random(bank, captions, count, keep, Scorer(model), draw)
    pool_images = draw_images(bank, torch.tensor(own), count, draw.generator("cpu", "negative images")).tolist()
    pool_texts = draw_captions(bank, torch.tensor(own), count, draw.generator("cpu", "negative captions")).tolist()
    model.eval()
    with torch.no_grad():
        for row, caption in enumerate(captions.tolist()):
            ids = caption_ids(bank, caption)
            score = {i: float(score_of(model, bank, ids, i)) for i in pool_images[row]}
            assert images.index[row].tolist() == sorted(score, key=score.get, reverse=True)[:keep]
            score = {c: float(score_of(model, bank, caption_ids(bank, c), own[row])) for c in pool_texts[row]}
            assert texts.index[row].tolist() == sorted(score, key=score.get, reverse=True)[:keep]
    assert images.valid.all() and texts.valid.all() and images.valid.shape == (3, keep)


def test_mine_random_keeps_all_where_the_pool_is_small(corpus):
    bank, model = corpus
    images, texts = mine_random(bank, torch.tensor([0, 20]), 3, 31, Scorer(model), Draw(1, 2, 3))
    assert images.index.shape == texts.index.shape == (2, 3)


def test_mine_random_depends_on_the_draw_alone(corpus):
    bank, model = corpus
    captions = torch.tensor([0, 20])
    one = mine_random(bank, captions, 5, 2, Scorer(model), Draw(1, 2, 3))
    torch.manual_seed(99)
    same = mine_random(bank, captions, 5, 2, Scorer(model), Draw(1, 2, 3))
    assert all(torch.equal(a.index, b.index) for a, b in zip(one, same))
    others = [mine_random(bank, captions, 5, 2, Scorer(model), Draw(1, 2, slot))[1].index for slot in range(4, 8)]
    assert any(not torch.equal(one[1].index, other) for other in others)


def valid_rows(hard) -> list[list[int]]:
    return [[i for i, ok in zip(row, valid) if ok] for row, valid in zip(hard.index.tolist(), hard.valid.tolist())]


@pytest.mark.parametrize("keep", [1, 2, 3, 31])
@pytest.mark.parametrize("captions", [[3, 40, 22, 11], [3, 40, 4, 22, 11, 42], [0, 1, 2]])
def test_mine_shared_against_a_loop(corpus, captions, keep):
    """Also with two captions of one image in the batch: that image is one candidate, not two, and neither of its
    captions is a negative of the other; three captions of a single image leave nothing."""
    bank, model = corpus
    own = [int(bank.image_of_caption[c]) for c in captions]
    images, texts = mine_shared(bank, torch.tensor(captions), keep, Scorer(model))
    model.eval()
    with torch.no_grad():
        table = [[float(score_of(model, bank, caption_ids(bank, c), i)) for i in own] for c in captions]
    for b in range(len(captions)):
        candidates = {own[j]: table[b][j] for j in range(len(captions)) if own[j] != own[b]}
        assert valid_rows(images)[b] == sorted(candidates, key=candidates.get, reverse=True)[:keep]
        candidates = {captions[j]: table[j][b] for j in range(len(captions)) if own[j] != own[b]}
        assert valid_rows(texts)[b] == sorted(candidates, key=candidates.get, reverse=True)[:keep]
