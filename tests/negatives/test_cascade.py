"""Cascade mining: the choice of candidates by hand, and the negatives against those of plain mining."""

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.shards import load_bank
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.negatives import cascade
from tagsds.negatives.cascade import Narrowed, mine_cascaded, narrow
from tagsds.negatives.random import NegativesConfig, draw_random, mine_random
from tagsds.scoring.scorer import Scorer
from tests.small_world import caption_ids, model_of, one_pair, score_of

CAPTIONS = torch.tensor([3, 40, 4])  # 3 and 4 belong to one image
DRAW = Draw(5, 17, 1)


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    model = model_of(manifest, hidden_dropout_prob=0.5)  # dropout must not show
    model.add_probe(3)
    return bank, model


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the choice ----------------------------------------------------------------------------------------------------------


def test_the_best_by_the_probe_and_a_sample_of_the_others():
    probed = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.2], [5.0, 1.0, 2.0, 3.0, 4.0]])
    seen = [set(), set()]
    for seed in range(60):
        columns = narrow(probed, 2, 2, seeded(seed))
        assert columns.shape == (2, 4)
        assert columns[:, :2].tolist() == [[1, 3], [0, 4]]  # in the candidates' order
        for row, found in zip(columns[:, 2:].tolist(), seen):
            assert len(set(row)) == 2
            found |= {tuple(row)}
    assert seen[0] == {(a, b) for a in (0, 2, 4) for b in (0, 2, 4) if a != b}  # uniform: each pair of the dropped turns up
    assert seen[1] == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}


def test_nothing_dropped():
    assert narrow(torch.rand(3, 7), 7, 16, seeded(1)).tolist() == [list(range(7))] * 3


def test_fewer_dropped_than_the_sample():
    assert sorted(narrow(torch.rand(1, 7), 5, 16, seeded(1))[0].tolist()) == list(range(7))


# --- one direction by hand -----------------------------------------------------------------------------------------------

SCORES = torch.tensor([[1.0, 6.0, 3.0, 2.0, 5.0, 0.0], [9.0, 8.0, 7.0, 6.0, 1.0, 2.0]])
INDEX = torch.tensor([[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]])
HAND = Narrowed(INDEX, SCORES, kept=4, dropped=6)  # 10 candidates a row, 4 kept, 2 of the 6 dropped sampled


def test_hard_are_the_highest_of_all_that_were_scored():
    assert HAND.hard(3).index.tolist() == [[11, 14, 12], [20, 21, 22]]  # 14 had been dropped
    assert HAND.hard(3).valid.all()


def test_share_kept_by_hand():
    """Each of the sample stands for 3. Row 1: above the dropped 5 is one kept candidate; above the dropped 0 are all four, and what
    the 5 stands for. Row 2: four kept ones are above both."""
    assert [float(x) for x in HAND.kept_of_top(2)] == [2 * 2 - min(2, 3), 4]  # no row misses more than it has
    assert [float(x) for x in HAND.kept_of_top(4)] == [2 * 4 - 3, 8]
    assert [float(x) for x in HAND.kept_of_top(1)] == [2, 2]


def test_share_kept_is_right_on_average():
    """A probe that errs at random: the estimate against the true share."""
    generator = seeded(0)
    full = torch.randn(400, 120, generator=generator)
    probed = full + 0.6 * torch.randn(full.shape, generator=generator)
    columns = narrow(probed, 40, 16, generator)
    hits, cases = Narrowed(columns, full.gather(1, columns), 40, 80).kept_of_top(10)
    kept = torch.zeros_like(full).scatter_(1, columns[:, :40], 1.0)
    truth = float(kept.gather(1, full.topk(10, dim=1).indices).mean())
    assert 0.8 < truth < 0.99
    assert float(hits / cases) == pytest.approx(truth, abs=0.02)


def test_lesson_by_hand(monkeypatch):
    monkeypatch.setattr(cascade, "SAMPLE", 2)
    lesson = HAND.lesson(3, seeded(0))
    assert lesson.index.shape == (2, 3 + 1 + 2)  # of four kept ones, one is always left beside three hardest
    assert lesson.index[:, :3].tolist() == [[11, 14, 12], [20, 21, 22]]
    assert int(lesson.index[0, 3]) in (10, 13) and int(lesson.index[1, 3]) == 23
    assert lesson.index[:, 4:].tolist() == [[14, 15], [24, 25]]
    assert lesson.weight.tolist() == [[1.0, 0.0, 3.0], [1.0, 3.0, 3.0]]  # 14 is among the hardest


def test_no_other_is_among_the_hardest():
    generator = seeded(2)
    index = torch.stack([torch.randperm(200, generator=generator)[:100] for _ in range(5)])
    narrowed = Narrowed(index, torch.randn(5, 100, generator=generator), kept=84, dropped=116)
    lesson = narrowed.lesson(10, generator)
    assert lesson.index.shape == (5, 10 + 16 + 16)
    for row, weight in zip(lesson.index.tolist(), lesson.weight.tolist()):
        assert not set(row[:10]) & {i for i, w in zip(row[10:], weight) if w}
        assert weight[:16] == [74 / 16] * 16 and set(weight[16:]) <= {0.0, 116 / 16}


# --- the whole -----------------------------------------------------------------------------------------------------------


def config_of(share: float, count: int = 9, keep: int = 4, after: int = 0) -> NegativesConfig:
    config = NegativesConfig(count=count, keep=keep, cascade=share, cascade_after=after)
    config.check("negatives")
    return config


def test_a_share_of_one_gives_the_very_negatives_of_plain_mining(corpus):
    bank, model = corpus
    plain = mine_random(bank, CAPTIONS, 9, 4, Scorer(model), DRAW)
    for found, expected in zip(mine_cascaded(bank, CAPTIONS, config_of(1.0), Scorer(model), DRAW), plain):
        assert torch.equal(found.hard(4).index, expected.index) and torch.equal(found.hard(4).valid, expected.valid)
        assert [float(x) for x in found.kept_of_top(4)] == [12, 12]


def test_the_first_steps_mine_as_without_a_cascade(corpus, monkeypatch):
    """And the counter is then exact: which of the hardest the probe would have kept."""
    monkeypatch.setattr(cascade, "SAMPLE", 1)
    bank, model = corpus
    plain = mine_random(bank, CAPTIONS, 9, 4, Scorer(model), DRAW)
    found = mine_cascaded(bank, CAPTIONS, config_of(0.5, after=DRAW.step + 1), Scorer(model), DRAW)
    for narrowed, expected in zip(found, plain):
        assert narrowed.index.shape == (3, 9) and torch.equal(narrowed.hard(4).index, expected.index)
        kept = [len({*top} & {*left}) for top, left in zip(expected.index.tolist(), narrowed.index[:, :5].tolist())]
        assert [float(x) for x in narrowed.kept_of_top(4)] == [sum(kept), 12]
        lesson = narrowed.lesson(4, seeded(0))
        assert lesson.index.shape == (3, 4 + 1 + 1)  # no more than SAMPLE of each sort
        assert set(lesson.weight[:, 1].tolist()) <= {0.0, 4.0}
    narrowed = mine_cascaded(bank, CAPTIONS, config_of(0.5, after=DRAW.step), Scorer(model), DRAW)[0]
    assert narrowed.index.shape == (3, 6)


def test_the_hardest_of_what_the_probe_leaves(corpus, monkeypatch):
    """Against a loop: the probe's order pair by pair, then the encoder's score of what is left."""
    monkeypatch.setattr(cascade, "SAMPLE", 1)
    bank, model = corpus
    scorer, config = Scorer(model), config_of(0.5)
    assert config.scored == 5
    images, others = draw_random(bank, CAPTIONS, 9, DRAW)
    found = mine_cascaded(bank, CAPTIONS, config, scorer, DRAW)
    model.eval()
    for side, (drawn, narrowed) in enumerate(zip((images, others), found)):
        assert narrowed.index.shape == (3, 6) and narrowed.dropped == 4
        for row, caption in enumerate(CAPTIONS.tolist()):
            own, text = int(bank.image_of_caption[caption]), caption_ids(bank, caption)
            probe = {}
            for number in drawn[row].tolist():
                pair = one_pair(bank, text, number) if side == 0 else one_pair(bank, caption_ids(bank, number), own)
                probe[number] = float(scorer.probe(pair))
            best = sorted(probe, key=probe.get, reverse=True)[:5]
            assert set(narrowed.index[row, :5].tolist()) == set(best)
            assert int(narrowed.index[row, 5]) in set(drawn[row].tolist()) - set(best)
            with torch.no_grad():
                score = {
                    n: float(score_of(model, bank, text, n) if side == 0 else score_of(model, bank, caption_ids(bank, n), own))
                    for n in narrowed.index[row].tolist()
                }
            assert narrowed.hard(4).index[row].tolist() == sorted(score, key=score.get, reverse=True)[:4]
    model.train()


def test_the_encoder_scores_no_other_pair(corpus):
    bank, model = corpus
    rows = []
    hook = model.pooler.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    mine_cascaded(bank, CAPTIONS, config_of(0.5), Scorer(model), DRAW)
    hook.remove()
    assert sum(rows) == 2 * 3 * (5 + 4)  # all four dropped ones fit in the sample


def test_the_draw_decides(corpus):
    bank, model = corpus
    model.train()
    torch.manual_seed(1)
    one = mine_cascaded(bank, CAPTIONS, config_of(0.5), Scorer(model), DRAW)
    torch.manual_seed(2)
    same = mine_cascaded(bank, CAPTIONS, config_of(0.5), Scorer(model), DRAW)
    assert all(torch.equal(a.index, b.index) and torch.equal(a.scores, b.scores) for a, b in zip(one, same))
    assert model.training and all(p.grad is None for p in model.parameters())


# --- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["negatives.cascade=1.5"], "negatives.cascade=1.5 must be a share"),
        (["negatives.cascade=-0.1"], "negatives.cascade=-0.1 must be a share"),
        (["negatives.cascade_after=-1"], "negatives.cascade_after=-1 must not be negative"),
        (["negatives.cascade=0.05"], "leaves 20 of negatives.count=399 negatives to be scored, fewer than negatives.keep=31"),
        (["negatives.cascade=0.34", "negatives.shared=true"], "set negatives.shared=false or negatives.cascade=0"),
        (["negatives.cascade=0.34", "offline.replace_random=true", "offline.candidates=x"], "set offline.replace_random=false"),
    ],
)
def test_a_mistake_gets_one_sentence(settings, sentence):
    with pytest.raises(UserError) as error:
        load_config("baseline-base-coco", settings)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_how_many_are_scored():
    scored = {share: NegativesConfig(count=399, cascade=share).scored for share in (0.0, 0.34, 0.5, 1.0)}
    assert scored == {0.0: 399, 0.34: 136, 0.5: 200, 1.0: 399}
    assert load_config("baseline-base-coco").negatives.cascade == 0  # off in the published recipes
