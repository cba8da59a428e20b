"""Pre-training tasks against literal recomputations, the task sequence, and idle heads."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tagsds.config import RunConfig
from tagsds.data.masking import choose_pieces
from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.objectives.pretrain import PretrainObjective
from tagsds.scoring.scorer import Scorer
from tests.small_world import caption_ids, model_of

CAPTIONS = torch.tensor([3, 41, 4, 17, 58])
DRAW = Draw(7, 5, 1)


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


def objective_of(corpus, **mix: int) -> PretrainObjective:
    """With the given odds, all others zero."""
    _, manifest, vocab = corpus
    config = RunConfig(objective="pretrain")
    config.pretrain.mix = dict.fromkeys(("itm", "mlm", "mrfr", "mrckl", "mrc"), 0) | mix
    model = model_of(manifest)
    return PretrainObjective(model, config, vocab, Scorer(model))


def run(objective, bank, captions=CAPTIONS, draw=DRAW):
    """The report, and the pairs that the model was given."""
    seen = []
    hook = objective.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    report = objective(bank, captions, draw)
    hook.remove()
    assert len(seen) == 1 and report.forwards == len(captions)
    return report, seen[0]


def single(pairs: Pairs, p: int) -> Pairs:
    """Pair p with tables of its own."""
    text, image = int(pairs.text_of_pair[p]), int(pairs.image_of_pair[p])
    begin = int(pairs.images.lengths[:image].sum())
    rows = slice(begin, begin + int(pairs.images.lengths[image]))
    masked = None if pairs.images.masked is None else pairs.images.masked[rows]
    regions = Ragged(pairs.images.regions.values[rows], pairs.images.lengths[image : image + 1])
    zero = torch.zeros(1, dtype=torch.int64)
    texts = Ragged(pairs.texts[text], pairs.texts.lengths[text : text + 1])
    return Pairs(texts, Images(regions, pairs.images.geometry[rows], masked), zero, zero)


def log_softmax(row: Tensor) -> list[float]:
    values = row.detach().double().tolist()
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [v - top - math.log(total) for v in values]


def ipot(cost: list[list[float]], beta: float = 0.5, iterations: int = 50) -> float:
    """Optimal transport between uniform marginals by the proximal point method, in loops: <plan, cost>."""
    n, m = len(cost), len(cost[0])
    sigma = [1.0 / m] * m
    plan = [[1.0] * m for _ in range(n)]
    for _ in range(iterations):
        q = [[math.exp(-cost[i][j] / beta) * plan[i][j] for j in range(m)] for i in range(n)]
        delta = [1.0 / (n * sum(q[i][j] * sigma[j] for j in range(m))) for i in range(n)]
        sigma = [1.0 / (m * sum(q[i][j] * delta[i] for i in range(n))) for j in range(m)]
        plan = [[delta[i] * q[i][j] * sigma[j] for j in range(m)] for i in range(n)]
    return sum(plan[i][j] * cost[i][j] for i in range(n) for j in range(m))


# --- the tasks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", range(3))
def test_itm_and_wra(corpus, slot):
    bank = corpus[0]
    objective = objective_of(corpus, itm=1)
    model = objective.model
    report, pairs = run(objective, bank, draw=Draw(1, 2, slot))
    losses, distances, hits = [], [], 0
    for p, caption in enumerate(CAPTIONS.tolist()):
        pair = single(pairs, p)
        assert pair.texts.values.tolist() == bank.tokens[caption].tolist()
        own = bank.regions[int(bank.image_of_caption[caption])]
        is_true = torch.equal(pair.images.regions.values, own)
        with torch.no_grad():
            states = model(pair)
            logits = model.itm(model.pooler(states[:1]))[0]
        losses.append(-log_softmax(logits)[int(is_true)])
        hits += int(logits.argmax()) == int(is_true)
        words = states[: len(pair.texts.values)]  # [CLS] and [SEP] count as words
        regions = states[len(pair.texts.values) :]
        cost = [[1 - float(torch.cosine_similarity(w, r, dim=0)) for r in regions] for w in words]
        distances.append(ipot(cost) if is_true else -ipot(cost))
    assert report.terms["itm"].item() == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert report.terms["wra"].item() == pytest.approx(sum(distances) / 5, rel=1e-3, abs=1e-5)
    assert float(report.total) == pytest.approx(float(report.terms["itm"]) + 0.1 * float(report.terms["wra"]), rel=1e-6)
    assert [float(v) for v in report.counters["itm/accuracy"]] == [hits, 5]


def test_itm_gives_half_of_the_pairs_another_image(corpus):
    bank = corpus[0]
    objective = objective_of(corpus, itm=1)
    captions = torch.arange(0, 60, 2)
    true = []
    for step in range(20):
        _, pairs = run(objective, bank, captions, Draw(3, step, 0))
        for p, caption in enumerate(captions.tolist()):
            regions = single(pairs, p).images.regions.values
            held = [i for i in range(bank.num_images) if torch.equal(regions, bank.regions[i])]
            assert len(held) == 1
            true.append(held[0] == int(bank.image_of_caption[caption]))
    assert 0.42 < sum(true) / len(true) < 0.58  # 600 pairs: four standard deviations are 0.082


def test_mlm(corpus):
    bank, _, vocab = corpus
    objective = objective_of(corpus, mlm=1)
    model = objective.model
    report, pairs = run(objective, bank)
    lengths = bank.tokens.lengths[CAPTIONS]
    chosen = choose_pieces(lengths, int(lengths.max()), DRAW.generator("cpu", "mlm"), 0.15)
    losses, hits = [], 0
    for p, caption in enumerate(CAPTIONS.tolist()):
        pair, original = single(pairs, p), bank.tokens[caption].tolist()
        hidden = chosen[p].nonzero().flatten().tolist()
        assert hidden
        for position, (now, before) in enumerate(zip(pair.texts.values.tolist(), original)):
            assert now == before or position in hidden
        states = model(pair)
        for position in hidden:
            logits = model.mlm(states[position])
            losses.append(-log_softmax(logits)[original[position]])
            hits += int(logits.argmax()) == original[position]
        own = bank.regions[int(bank.image_of_caption[caption])]
        assert torch.equal(pair.images.regions.values, own) and pair.images.masked is None  # words only
    assert any(vocab.mask in pairs.texts[p].tolist() for p in range(5))
    assert float(report.total) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert [float(v) for v in report.counters["mlm/accuracy"]] == [hits, len(losses)]


@pytest.mark.parametrize(
    ("task", "reduction", "background"),
    [("mrfr", "mean", False), ("mrckl", "mean", False), ("mrckl", "sum", True), ("mrc", "mean", False), ("mrc", "mean", True)],
)
def test_regions(corpus, task, reduction, background):
    bank = dataclasses.replace(corpus[0], background_class=background)
    objective = objective_of(corpus, **{task: 1})
    objective.config.kl_reduction = reduction
    model = objective.model
    report, pairs = run(objective, bank)
    starts = [0, *bank.regions.lengths.cumsum(0).tolist()]
    projection = model.image_embedding.feature.weight  # W_f [H, D]
    losses, hits = [], 0
    for p, caption in enumerate(CAPTIONS.tolist()):
        pair, image = single(pairs, p), int(bank.image_of_caption[caption])
        assert pair.texts.values.tolist() == bank.tokens[caption].tolist()  # regions only
        hidden = pair.images.masked.nonzero().flatten().tolist()
        assert hidden
        states = model(pair)
        for region in hidden:
            state = states[len(pair.texts.values) + region]
            if task == "mrfr":
                predicted = model.region_feature.transform(state) @ projection + model.region_feature.bias
                target = bank.regions[image][region].float()
                losses.append(float(((predicted - target) ** 2).mean().detach()))
                continue
            soft = bank.classes[starts[image] + region].tolist()
            log_p = log_softmax(model.region_class(state))
            top = max(range(1 if background else 0, len(soft)), key=lambda c: soft[c])
            if task == "mrckl":
                divergence = sum(q * (math.log(q) - lp) for q, lp in zip(soft, log_p) if q > 0)
                losses.append(divergence / (len(soft) if reduction == "mean" else 1))
            else:
                losses.append(-log_p[top])
            hits += log_p.index(max(log_p)) == top
    assert float(report.total) == pytest.approx(sum(losses) / len(losses), rel=2e-5)
    assert set(report.terms) == {task}
    if task != "mrfr":
        assert [float(v) for v in report.counters["region_class/accuracy"]] == [hits, len(losses)]


def test_a_hidden_feature_does_not_reach_the_loss(corpus):
    """The prediction of a masked region must not see the feature it is to predict."""
    bank = corpus[0]
    objective = objective_of(corpus, mrckl=1)
    _, pairs = run(objective, bank)
    pair = single(pairs, 0)
    region = int(pair.images.masked.nonzero()[0])
    image = int(bank.image_of_caption[CAPTIONS[0]])
    other = dataclasses.replace(bank, regions=Ragged(bank.regions.values.clone(), bank.regions.lengths))
    row = int(bank.regions.lengths[:image].sum()) + region
    other.regions.values[row] += 3.0
    # captions 3 and 4 share the image: leave 4 out, where the region may be in view
    alone = torch.tensor([3])
    draws = [Draw(7, step, 0) for step in range(12)]
    changed = []
    for draw in draws:
        _, pairs = run(objective, bank, alone, draw)
        hidden = bool(pairs.images.masked[region])
        same = float(objective(bank, alone, draw).total) == float(objective(other, alone, draw).total)
        assert same == hidden
        changed.append(hidden)
    assert any(changed) and not all(changed)


# --- heads and sequence --------------------------------------------------------------------------------------------

HEAD_OF = {"itm": "itm", "mlm": "mlm", "mrfr": "region_feature", "mrckl": "region_class", "mrc": "region_class"}


@pytest.mark.parametrize("task", HEAD_OF)
def test_idle_heads_get_zero_gradients_not_none(corpus, task):
    bank = corpus[0]
    objective = objective_of(corpus, **{task: 1})
    objective(bank, CAPTIONS, DRAW).total.backward()
    model = objective.model
    for head in ("itm", "mlm", "region_feature", "region_class"):
        own = {n: p for n, p in model.get_submodule(head).named_parameters() if (head, n) != ("mlm", "decoder.weight")}
        assert all(p.grad is not None for p in own.values()), head
        moved = sum(float(p.grad.abs().sum()) for p in own.values())
        assert (moved > 0) == (head == HEAD_OF[task]), head
    idle = ("rank", "discriminate", "correct")  # of fine-tuning: frozen in this stage
    for name, parameter in model.named_parameters():
        if not name.startswith(idle):
            assert parameter.grad is not None, name
    assert (float(model.image_embedding.mask.grad.abs().sum()) > 0) == (task in ("mrfr", "mrckl", "mrc"))
    assert (float(model.pooler.dense.weight.grad.abs().sum()) > 0) == (task == "itm")


def test_heads_of_a_mix():
    config = RunConfig(objective="pretrain")
    assert PretrainObjective.heads(config) == ["itm", "mlm", "region_class", "region_feature"]
    config.pretrain.mix = {"itm": 0, "mlm": 1, "mrfr": 0, "mrckl": 0, "mrc": 3}
    assert PretrainObjective.heads(config) == ["mlm", "region_class"]


def test_task_depends_on_seed_and_step_alone(corpus):
    objective = objective_of(corpus, itm=2, mlm=2, mrfr=1, mrckl=1)
    sequence = [objective.task_at(Draw(1, step, 0)) for step in range(60)]
    torch.manual_seed(12)
    for slot in (1, 7):
        assert [objective.task_at(Draw(1, step, slot)) for step in reversed(range(60))] == sequence[::-1]
    assert [objective.task_at(Draw(2, step, 0)) for step in range(60)] != sequence


def test_odds_are_respected(corpus):
    objective = objective_of(corpus, itm=2, mlm=2, mrfr=1, mrckl=1)
    drawn = [objective.task_at(Draw(5, step, 0)) for step in range(3000)]
    expected = {"itm": 1000, "mlm": 1000, "mrfr": 500, "mrckl": 500}
    assert set(drawn) == set(expected)  # mrc has none
    chi_square = sum((drawn.count(task) - n) ** 2 / n for task, n in expected.items())
    assert chi_square < 16.3  # 3 degrees, 0.999 quantile


def test_the_task_of_the_step_is_what_runs(corpus):
    objective = objective_of(corpus, itm=1, mlm=1, mrfr=1, mrckl=1, mrc=1)
    for step in range(12):
        draw = Draw(9, step, 3)
        report = objective(corpus[0], CAPTIONS, draw)
        assert set(report.terms) - {"wra"} == {objective.task_at(draw)}


def test_wra_can_be_left_out(corpus):
    objective = objective_of(corpus, itm=1)
    objective.config.wra_weight = 0.0
    report = objective(corpus[0], CAPTIONS, DRAW)
    assert set(report.terms) == {"itm"}
    assert float(report.total) == float(report.terms["itm"])


@pytest.mark.parametrize("task", ["mrckl", "mrc"])
def test_soft_labels_that_are_not_there(corpus, task):
    bank = dataclasses.replace(corpus[0], classes=None)
    objective = objective_of(corpus, **{task: 1})
    with pytest.raises(UserError) as error:
        objective(bank, CAPTIONS, DRAW)
    assert task in str(error.value) and "classes.npy" in str(error.value) and "pretrain.mix" in str(error.value)
    objective_of(corpus, mrfr=1)(bank, CAPTIONS, DRAW)  # needs none


def test_unknown_task(corpus):
    with pytest.raises(UserError) as error:
        objective_of(corpus, mrcl=1)
    assert "'mrcl'" in str(error.value) and "mrc" in str(error.value)


def test_ids_come_from_the_bank(corpus):
    """The helper of these tests and the bank agree on what a caption is."""
    assert caption_ids(corpus[0], 3).tolist() == corpus[0].text_table(torch.tensor([3])).values.tolist()
