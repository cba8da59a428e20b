"""Baseline, TAGS and TAGS-DC against a slow loop: every pair forwarded alone, every formula in plain arithmetic."""

import math

import pytest
import torch
from torch import Tensor

from tagsds.config import RunConfig
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.negatives.random import mine_random, mine_shared
from tagsds.negatives.tailored import Filtered
from tagsds.negatives.writer import mask_captions, write_negatives
from tagsds.objectives.retrieval import RetrievalObjective, draws
from tagsds.scoring.scorer import Scorer
from tests.small_world import caption_ids, model_of, score_of, states_of

CAPTIONS = torch.tensor([3, 41, 4, 17])  # 3 and 4 belong to one image
DRAW = Draw(7, 5, 1)
WEIGHTS = {"t2i": 0.7, "i2t": 1.3, "syn": 0.9, "mlm": 0.4, "disc": 0.6, "corr": 0.5}


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


def config_of(maskings: int = 3, refills: int = 4, shared: bool = False, **weights) -> RunConfig:
    config = RunConfig()
    config.negatives.count, config.negatives.keep, config.negatives.shared = 6, 4, shared
    config.synthetic.maskings, config.synthetic.refills, config.synthetic.tau = maskings, refills, 2.0
    for name, weight in (WEIGHTS | weights).items():
        setattr(config.loss, name, weight)
    return config


def objective_of(corpus, config: RunConfig, seed: int = 0) -> RetrievalObjective:
    _, manifest, vocab = corpus
    model = model_of(manifest, seed)
    return RetrievalObjective(model, config, vocab, Scorer(model))


# --- the loop ------------------------------------------------------------------------------------------------------


def mean(values: list[Tensor]) -> Tensor:
    return sum(values) / len(values)


def nll(logits: Tensor, target: int) -> Tensor:
    """-log p(target) of one row, through the exponentials."""
    return torch.log(torch.exp(logits.double() - logits.max()).sum()) - (logits[target] - logits.max()).double()


def literal(objective: RetrievalObjective, corpus, config: RunConfig, captions: Tensor) -> tuple[dict, dict]:
    """{term: value with gradient}, {counter: fraction}, from the negatives that the same draw gives."""
    bank, _, vocab = corpus
    model, scorer, margin = objective.model, objective.scorer, config.loss.margin
    own = [int(bank.image_of_caption[c]) for c in captions]
    texts = [caption_ids(bank, int(c)) for c in captions]

    def s(ids: Tensor, image: int) -> Tensor:
        return torch.sigmoid(score_of(model, bank, ids, image))

    if config.negatives.shared:
        images, others = mine_shared(bank, captions, config.negatives.keep, scorer)
    else:
        images, others = mine_random(bank, captions, config.negatives.count, config.negatives.keep, scorer, DRAW)
    true = [s(texts[b], own[b]) for b in range(len(captions))]
    t2i, i2t, above_image, above_caption = [], [], [], []
    for b in range(len(captions)):
        rows = [s(texts[b], int(i)) for i, ok in zip(images.index[b], images.valid[b]) if ok]
        if rows:
            t2i.append(mean([torch.clamp(margin + row - true[b], min=0) for row in rows]))
        above_image += [bool(true[b] > row) for row in rows]
        rows = [s(caption_ids(bank, int(c)), own[b]) for c, ok in zip(others.index[b], others.valid[b]) if ok]
        if rows:
            i2t.append(mean([torch.clamp(margin + row - true[b], min=0) for row in rows]))
        above_caption += [bool(true[b] > row) for row in rows]
    terms = {"t2i": mean(t2i), "i2t": mean(i2t)}
    counters = {"rank/true_above_image": above_image, "rank/true_above_caption": above_caption}
    if not objective.writes:
        return terms, counters

    maskings = mask_captions(bank, captions, config.synthetic, vocab, DRAW.generator("cpu", "mask"))
    written = write_negatives(model, scorer, bank, captions, maskings, config.synthetic, vocab, DRAW)
    syn, word_loss, correction, above = [], [], [], []
    hits: dict[str, list[bool]] = {"disc/accuracy_replaced": [], "disc/accuracy_kept": [], "corr/accuracy": []}
    for b, text in enumerate(texts):
        mine = [n for n in range(len(written.ids)) if int(written.caption[n]) == b]
        mine = sorted(mine, key=lambda n: -float(written.score[n]))[: config.negatives.keep]
        rows = []
        for n in mine:
            ids, masked = written.ids[n][: len(text)], written.masked[n]
            states = states_of(model, bank, ids, own[b])
            rows.append(torch.sigmoid(model.score(states[:1])[0]))
            for position in range(len(text)):
                replaced = int(ids[position]) != int(text[position])
                logits = model.discriminate(states[position])
                weight = config.loss.weight_replaced if replaced else config.loss.weight_kept
                word_loss.append(weight * nll(logits, int(not replaced)))
                if 0 < position < len(text) - 1:
                    kind = "disc/accuracy_replaced" if replaced else "disc/accuracy_kept"
                    hits[kind].append(bool(logits[0] > logits[1]) == replaced)
                if masked[position]:
                    logits = model.correct(states[position])
                    correction.append(nll(logits, int(text[position])))
                    hits["corr/accuracy"].append(int(logits.argmax()) == int(text[position]))
        if rows:
            syn.append(mean([torch.clamp(margin + row - true[b], min=0) for row in rows]))
        above += [bool(true[b] > row) for row in rows]
    terms["syn"] = mean(syn)
    counters["rank/true_above_synthetic"] = above
    if config.loss.mlm:
        predicted = []
        for b, text in enumerate(texts):
            for m in range(config.synthetic.maskings):
                states = states_of(model, bank, maskings.masked[b, m][: len(text)], own[b])
                hidden = maskings.chosen[b, m].nonzero().flatten().tolist()
                assert hidden
                predicted += [nll(model.mlm(states[p]), int(text[p])) for p in hidden]
        terms["mlm"] = mean(predicted)
    if config.loss.disc:
        terms["disc"] = sum(word_loss) / len(word_loss)
        counters |= {name: hits[name] for name in ("disc/accuracy_replaced", "disc/accuracy_kept")}
    if config.loss.corr:
        terms["corr"] = mean(correction)
        counters["corr/accuracy"] = hits["corr/accuracy"]
    return terms, counters


STAGES = {
    "baseline": dict(syn=0.0, mlm=0.0, disc=0.0, corr=0.0),
    "TAGS": dict(disc=0.0, corr=0.0),
    "syn alone": dict(mlm=0.0, disc=0.0, corr=0.0),
    "TAGS-DC": {},
    "TAGS-DC, few sentences": dict(maskings=1, refills=2),
    "disc alone": dict(syn=0.0, mlm=0.0, corr=0.0),
    "corr alone": dict(syn=0.0, mlm=0.0, disc=0.0),
    "shared baseline": dict(syn=0.0, mlm=0.0, disc=0.0, corr=0.0, shared=True),
    "shared TAGS-DC": dict(shared=True),
}


@pytest.mark.parametrize("stage", STAGES)
def test_terms_counters_and_gradient_against_the_loop(corpus, stage):
    bank, config = corpus[0], config_of(**STAGES[stage])
    objective = objective_of(corpus, config)
    report = objective(bank, CAPTIONS, DRAW)
    terms, counters = literal(objective, corpus, config, CAPTIONS)
    assert set(report.terms) == set(terms)
    for name, value in terms.items():
        assert float(report.terms[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name
        assert float(value) > 0.01, f"{name} is too small for the comparison to say anything"
    total = sum(getattr(config.loss, name) * value for name, value in terms.items())
    assert float(report.total) == pytest.approx(float(total), rel=1e-5)
    for name, cases in counters.items():
        hit, weight = report.counters[name]
        assert (float(hit), float(weight)) == (sum(cases), len(cases)), name

    parameters = dict(objective.model.named_parameters())
    ours = torch.autograd.grad(report.total, list(parameters.values()), allow_unused=True)
    expected = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    overall = math.sqrt(sum(float((g**2).sum()) for g in expected if g is not None))
    for name, a, b in zip(parameters, ours, expected):
        a, b = (torch.zeros_like(parameters[name]) if g is None else g for g in (a, b))
        scale = max(float(b.norm()), 0.01 * overall)  # some cancel: the bias of a score is in true and hard alike
        assert float((a - b).norm()) <= 1e-4 * scale, (name, float((a - b).norm()) / scale)


def test_weights_multiply(corpus):
    bank = corpus[0]
    one = objective_of(corpus, config_of())(bank, CAPTIONS, DRAW)
    assert float(one.total) == pytest.approx(sum(WEIGHTS[n] * float(t) for n, t in one.terms.items()), rel=1e-6)
    for name in WEIGHTS:
        other = objective_of(corpus, config_of(**{name: 3 * WEIGHTS[name]}))(bank, CAPTIONS, DRAW)
        assert {n: float(t) for n, t in other.terms.items()} == {n: float(t) for n, t in one.terms.items()}
        assert float(other.total - one.total) == pytest.approx(2 * WEIGHTS[name] * float(one.terms[name]), rel=1e-4)


def test_margin_moves_the_hinges(corpus):
    config = config_of(**STAGES["baseline"])
    config.loss.margin = 2.0  # above any difference of sigmoids: every hinge is open
    objective = objective_of(corpus, config)
    report = objective(corpus[0], CAPTIONS, DRAW)
    true, hard = report.scores["true"], report.scores["hard_image"].view(4, 4)
    assert float(report.terms["t2i"]) == pytest.approx(float((2.0 + hard - true[:, None]).mean()), abs=1e-6)


def test_draw_decides(corpus):
    bank = corpus[0]
    objective = objective_of(corpus, config_of())
    first, again = (objective(bank, CAPTIONS, Draw(7, 5, 1)) for _ in range(2))
    assert float(first.total) == float(again.total)
    others = [float(objective(bank, CAPTIONS, Draw(7, 5, slot)).total) for slot in range(2, 5)]
    assert all(other != float(first.total) for other in others)


def test_negatives_are_chosen_without_dropout_and_learnt_from_with_it(corpus):
    bank, manifest, vocab = corpus
    model = model_of(manifest, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    objective = RetrievalObjective(model, config_of(), vocab, Scorer(model))
    totals, seen = [], []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]) if torch.is_grad_enabled() else None)
    for seed in (1, 2):
        torch.manual_seed(seed)
        totals.append(float(objective(bank, CAPTIONS, DRAW).total))
        assert model.training
    hook.remove()
    assert totals[0] != totals[1]
    for name in ("texts", "images"):
        a, b = (getattr(pairs, name) for pairs in seen)
        assert torch.equal(a.lengths, b.lengths)
    assert torch.equal(seen[0].texts.values, seen[1].texts.values)
    assert torch.equal(seen[0].image_of_pair, seen[1].image_of_pair)


def test_baseline_writes_nothing(corpus, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a baseline has no use for synthetic sentences")

    monkeypatch.setattr(draws, "mask_captions", never)
    monkeypatch.setattr(draws, "write_negatives", never)
    objective = objective_of(corpus, config_of(**STAGES["baseline"]))
    for head in ("mlm", "discriminate", "correct"):
        getattr(objective.model, head).register_forward_hook(never)
    report = objective(corpus[0], CAPTIONS, DRAW)
    assert set(report.terms) == {"t2i", "i2t"}
    assert set(report.counters) == {"rank/true_above_image", "rank/true_above_caption"}
    assert report.forwards == 2 * 6 * 4 + 4 + 2 * 4 * 4  # mined both ways, true pairs, hard ones both ways


@pytest.mark.parametrize(
    ("stage", "heads"),
    [
        ("baseline", {"rank"}),
        ("TAGS", {"rank", "mlm"}),
        ("TAGS-DC", {"rank", "mlm", "discriminate", "correct"}),
        ("disc alone", {"rank", "discriminate"}),
    ],
)
def test_heads_of_a_stage_all_get_a_gradient_and_no_others(corpus, stage, heads):
    config = config_of(**STAGES[stage])
    assert set(RetrievalObjective.heads(config)) == heads
    objective = objective_of(corpus, config)
    objective(corpus[0], CAPTIONS, DRAW).total.backward()
    for head in ("itm", "rank", "mlm", "discriminate", "correct", "region_feature", "region_class"):
        parameters = objective.model.get_submodule(head).named_parameters()
        own = [p for name, p in parameters if name != "decoder.weight" or head == "region_class"]  # tied elsewhere
        assert all((p.grad is not None) == (head in heads) for p in own), head
    rest = [p for n, p in objective.model.named_parameters() if n.split(".")[0] in ("layers", "pooler", "image_embedding")]
    assert all(p.grad is not None for p in rest)


def test_filter_counters(corpus):
    report = objective_of(corpus, config_of(maskings=5, refills=6))(corpus[0], CAPTIONS, DRAW)
    names = ("written", "not_annotated", "distinct", "false_of_image", "kept")
    counts = [float(report.counters[f"filter/{name}"][0]) for name in names]
    assert all(float(report.counters[f"filter/{name}"][1]) == 4 for name in names)
    assert counts[0] == 4 * 5 * 6
    assert counts == sorted(counts, reverse=True)
    assert counts[3] < counts[0] and counts[4] <= 4 * 4
    assert len(report.scores["synthetic"]) == counts[4]
    assert float(report.counters["rank/true_above_synthetic"][1]) == counts[4]


def test_when_every_sentence_is_dropped(corpus, monkeypatch):
    """No synthetic term, but all parameters still take part in the backward, as the other ranks' do."""

    def drop_all(candidates, *_):
        keep = torch.zeros(candidates.shape[:2], dtype=torch.bool)
        return Filtered(keep, {"written": torch.tensor(keep.numel()), "false_of_image": keep.sum()})

    monkeypatch.setattr("tagsds.negatives.writer.filter_candidates", drop_all)
    objective = objective_of(corpus, config_of())
    report = objective(corpus[0], CAPTIONS, DRAW)
    report.total.backward()
    assert [float(report.terms[name]) for name in ("syn", "disc", "corr")] == [0, 0, 0]
    assert float(report.terms["mlm"]) > 0
    assert math.isfinite(float(report.total))
    for head in ("rank", "mlm", "discriminate", "correct"):
        for parameter in objective.model.get_submodule(head).parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert float(objective.model.discriminate.weight.grad.abs().sum()) == 0
