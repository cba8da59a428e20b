"""The term that trains the probe: its value, whom its gradient reaches, and that it teaches."""

import pytest
import torch
import torch.nn.functional as F

from tagsds.config import load_config
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.models.uniter.probe import QUERIES
from tagsds.objectives import RetrievalObjective
from tagsds.objectives.retrieval import loss_terms
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.terms.cascade import WEIGHT
from tagsds.scoring.scorer import Scorer
from tests.small_world import caption_ids, model_of, one_pair

CAPTIONS, DRAW = torch.tensor([3, 41, 4, 17]), Draw(7, 5, 1)
SMALL = ["negatives.count=24", "negatives.keep=3", "negatives.cascade_after=0"]


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "train")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


def objective_of(corpus, *overrides: str, **changes) -> RetrievalObjective:
    config = load_config("baseline-base-coco", [*SMALL, *overrides])
    model = model_of(corpus[1], **changes)
    RetrievalObjective.prepare(model, config)
    return RetrievalObjective(model, config, corpus[2], Scorer(model))


def gradients(objective: RetrievalObjective) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in objective.model.named_parameters() if p.grad is not None}


def test_off_by_default(corpus):
    objective = objective_of(corpus)
    assert not hasattr(objective.model, "probe") and objective.model.config.probe_queries == 0
    assert set(objective(corpus[0], CAPTIONS, DRAW).terms) == {"t2i", "i2t"}
    assert RetrievalObjective.heads(objective.config) == ["rank"]


def test_the_encoder_learns_the_same(corpus):
    """With a share of 1 the negatives are the same, so every gradient of the encoder must be: none comes from the term."""
    plain, cascaded = objective_of(corpus), objective_of(corpus, "negatives.cascade=1.0")
    found, expected = cascaded(corpus[0], CAPTIONS, DRAW), plain(corpus[0], CAPTIONS, DRAW)
    found.total.backward(), expected.total.backward()
    for name in ("t2i", "i2t"):
        assert torch.equal(found.terms[name], expected.terms[name])
    ours, theirs = gradients(cascaded), gradients(plain)
    assert {name for name in ours if name not in theirs} == {n for n, _ in cascaded.model.named_parameters() if "probe" in n}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours["probe.text.value.weight"].abs().max() > 0 and ours["probe.image.attend.weight"].abs().max() > 0
    torch.testing.assert_close(found.total, expected.total + WEIGHT * found.terms["cascade"], atol=1e-6, rtol=0)


def test_value_against_a_loop(corpus):
    """Every pair of the lesson probed alone, without dropout."""
    objective = objective_of(corpus, "negatives.cascade=0.34", hidden_dropout_prob=0.5)
    bank, model = corpus[0], objective.model
    found = objective(bank, CAPTIONS, DRAW).terms["cascade"]
    draws = Draws(objective.negatives, bank, CAPTIONS, DRAW)
    generator = DRAW.generator("cpu", "lesson")
    lessons = [narrowed.lesson(3, generator) for narrowed in draws.cascaded]
    model.eval()
    sides = []
    for side, lesson in enumerate(lessons):
        assert lesson.index.shape == (4, 3 + 6 + 15)  # 9 of 24 are kept; 15 dropped ones fit in the sample
        total = weights = 0.0
        for row, caption in enumerate(CAPTIONS.tolist()):
            own, text = int(bank.image_of_caption[caption]), caption_ids(bank, caption)
            probed = [
                float(model.probe_scores(one_pair(bank, text, n) if side == 0 else one_pair(bank, caption_ids(bank, n), own)))
                for n in lesson.index[row].tolist()
            ]
            for other, weight in zip(probed[3:], lesson.weight[row].tolist()):
                total += weight * sum(float(F.softplus(torch.tensor(other - hard))) for hard in probed[:3]) / 3
                weights += weight
        sides.append(total / weights)
    model.train()
    assert float(found) == pytest.approx(sum(sides) / 2, rel=1e-4)


def test_counter_and_pairs_of_the_log(corpus):
    report = objective_of(corpus, "negatives.cascade=0.34")(corpus[0], CAPTIONS, DRAW)
    hits, cases = report.counters["cascade/kept_of_top"]
    assert float(cases) == 2 * 4 * 3 and 0 <= float(hits) <= float(cases)
    scored = 2 * 4 * (9 + 15)
    assert report.forwards == scored + 4 + 2 * 4 * 3


def test_every_parameter_of_the_probe_takes_part(corpus):
    objective = objective_of(corpus, "negatives.cascade=0.34")
    objective(corpus[0], CAPTIONS, DRAW).total.backward()
    assert all(p.grad is not None for p in objective.model.probe.parameters())


def test_the_probe_comes_to_agree_with_the_encoder(corpus):
    """60 steps of the term alone: the share of the hardest that it keeps rises far above chance (0.34)."""
    objective = objective_of(corpus, "negatives.cascade=0.34", "loss.t2i=0", "loss.i2t=0")
    bank, model = corpus[0], objective.model
    optimiser = torch.optim.Adam(model.probe.parameters(), lr=1e-3)
    found = []
    for step in range(60):
        captions = torch.randint(bank.num_captions, (4,), generator=torch.Generator().manual_seed(step))
        report = objective(bank, captions, Draw(1, step, 0))
        optimiser.zero_grad()
        report.total.backward()
        optimiser.step()
        hits, cases = report.counters["cascade/kept_of_top"]
        found.append(float(hits / cases))
    first, last = sum(found[:10]) / 10, sum(found[-15:]) / 15
    assert last > first + 0.1 and last > 0.7, (first, last)


def test_prepare_adds_it_once_and_trains_it(corpus):
    config = load_config("baseline-base-coco", [*SMALL, "negatives.cascade=0.5"])
    model = model_of(corpus[1])
    assert RetrievalObjective.prepare(model, config) == ["probe"]
    before = {name: p.clone() for name, p in model.probe.named_parameters()}
    assert RetrievalObjective.prepare(model, config) == []  # a checkpoint that has one
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.probe.named_parameters())
    assert RetrievalObjective.heads(config) == ["rank", "probe"] and model.config.probe_queries == QUERIES
    RetrievalObjective.prepare(model, load_config("baseline-base-coco", SMALL))  # a stage without a cascade leaves it alone
    assert not any(p.requires_grad for p in model.probe.parameters())


def test_its_weight(corpus):
    config = load_config("baseline-base-coco", [*SMALL, "negatives.cascade=0.5", "loss.more.cascade=0.7"])
    assert [weight for weight, term in loss_terms(config) if "probe" in term.heads] == [0.7]
    with pytest.raises(UserError, match=r"loss\.more\.cascade .* negatives\.cascade=0"):
        loss_terms(load_config("baseline-base-coco", [*SMALL, "loss.more.cascade=0.7"]))
