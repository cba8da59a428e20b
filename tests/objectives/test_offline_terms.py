"""AOQ inside the encoder's objective against a slow loop: every pair forwarded alone, the paper's formulas pair by pair."""

import math

import pytest
import torch
from torch import Tensor

from tagsds.config import RunConfig, load_config
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.negatives.offline import draw_from_ranks, draw_quintuplet, mine_offline, needs_candidates
from tagsds.negatives.random import Hard, mine_random, mine_shared
from tagsds.objectives.retrieval import RetrievalObjective
from tagsds.objectives.retrieval.terms.quintuplet import hardest_of
from tagsds.scoring.scorer import Scorer
from tests.candidates import candidates_of
from tests.small_world import caption_ids, model_of, score_of

CAPTIONS = torch.tensor([3, 41, 4, 17])  # 3 and 4 belong to one image
DRAW = Draw(7, 5, 1)
FIRST, LAST, COUNT, KEEP = 3, 24, 6, 4


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer")), candidates_of(bank, 30, 7)


def config_of(group: dict | None = None, offline: dict | None = None, **loss) -> RunConfig:
    config = RunConfig()
    config.negatives.count, config.negatives.keep = COUNT, KEEP
    config.synthetic.maskings, config.synthetic.refills = 3, 4
    config.offline.first, config.offline.last = FIRST, LAST
    config.quintuplet.margin_off = 0.3  # opens hinges of every term
    for part, values in ((config.quintuplet, group or {}), (config.offline, offline or {}), (config.loss, loss)):
        for name, value in values.items():
            setattr(part, name, value)
    return config


def objective_of(corpus, config: RunConfig) -> RetrievalObjective:
    _, manifest, vocab, _ = corpus
    model = model_of(manifest)
    return RetrievalObjective(model, config, vocab, Scorer(model))


def mined(corpus, objective: RetrievalObjective, config: RunConfig) -> tuple[Hard, Hard]:
    bank, _, _, candidates = corpus
    generator = DRAW.generator("cpu", "offline negatives")
    if config.negatives.shared:
        return mine_shared(bank, CAPTIONS, KEEP, objective.scorer)
    if not config.offline.replace_random:
        return mine_random(bank, CAPTIONS, COUNT, KEEP, objective.scorer, DRAW)
    if config.offline.score:
        return mine_offline(candidates, bank, CAPTIONS, config.offline, config.negatives, objective.scorer, DRAW)
    return draw_from_ranks(candidates, bank, CAPTIONS, KEEP, FIRST, LAST, generator)


def literal(corpus, objective: RetrievalObjective, config: RunConfig) -> tuple[dict[str, Tensor], list[bool]]:
    """{term: value with gradient} of t2i, i2t and AOQ, and which offline pairs the true pair is above."""
    bank, _, _, candidates = corpus
    own = bank.image_of_caption[CAPTIONS].tolist()
    images, others = mined(corpus, objective, config)
    group = config.quintuplet
    off = draw_quintuplet(candidates, bank, CAPTIONS, FIRST, LAST, DRAW.generator("cpu", "offline quintuplet"))
    terms: dict[str, list[Tensor]] = {}
    above = []

    def s(caption: int, image: int) -> Tensor:
        return torch.sigmoid(score_of(objective.model, bank, caption_ids(bank, caption), image))

    def add(name: str, value: Tensor) -> None:
        terms.setdefault(name, []).append(value / len(CAPTIONS))

    def relu(x: Tensor) -> Tensor:
        return x if float(x.detach()) > 0 else 0 * x

    for b, caption in enumerate(CAPTIONS.tolist()):
        true = s(caption, own[b])
        at_images = [s(caption, i) for i, ok in zip(images.index[b].tolist(), images.valid[b].tolist()) if ok]
        at_captions = [s(c, own[b]) for c, ok in zip(others.index[b].tolist(), others.valid[b].tolist()) if ok]
        add("t2i", sum(relu(0.2 + x - true) for x in at_images) / len(at_images))
        add("i2t", sum(relu(0.2 + x - true) for x in at_captions) / len(at_captions))
        if not group.kind:
            continue
        t_off, i_off = s(int(off.caption_off[b]), own[b]), s(caption, int(off.image_off[b]))
        both = s(int(off.caption_off[b]), int(off.image_off[b]))
        rest = s(int(off.other_caption[b]), int(off.other_image[b]))
        if group.online:
            t_on, i_on = (max(row, key=lambda x: float(x.detach())) for row in (at_captions, at_images))
            w_t = w_i = torch.tensor(1.0)
            if group.kind == "adaptive":
                w_t, w_i = group.beta - (t_off - t_on) / group.alpha, group.beta - (i_off - i_on) / group.alpha
            if group.detach:
                w_t, w_i = w_t.detach(), w_i.detach()
            if group.clamp:
                w_t, w_i = relu(w_t), relu(w_i)
            add("aoq/online_caption", w_t * relu(group.margin_on + t_on - true))
            add("aoq/online_image", w_i * relu(group.margin_on + i_on - true))
        pairs = [] if group.kind == "online" else [("caption", t_off), ("image", i_off)]
        pairs += [("both", both), ("others", rest)] if group.kind in ("quintuplet", "adaptive") else []
        for name, score in pairs:
            add(f"aoq/offline_{name}", relu(group.margin_off + score - true))
            above.append(bool(true > score))
    return {name: sum(values) for name, values in terms.items()}, above


CASES = {
    "online": dict(group=dict(kind="online")),
    "offline": dict(group=dict(kind="offline")),
    "offline alone": dict(group=dict(kind="offline", online=False)),
    "quintuplet": dict(group=dict(kind="quintuplet")),
    "quintuplet alone": dict(group=dict(kind="quintuplet", online=False)),
    "adaptive": dict(group=dict(kind="adaptive", weight=0.7)),
    "adaptive, t2i and i2t only reported": dict(group=dict(kind="adaptive"), t2i=0.0, i2t=0.0),
    "adaptive detached": dict(group=dict(kind="adaptive", detach=True, beta=0.7, alpha=0.4)),
    "adaptive clamped": dict(group=dict(kind="adaptive", clamp=True, beta=-0.3, alpha=0.1)),
    "offline negatives": dict(offline=dict(replace_random=True)),
    "offline negatives unscored": dict(offline=dict(replace_random=True, score=False)),
    "offline negatives and adaptive": dict(group=dict(kind="adaptive"), offline=dict(replace_random=True)),
    "unscored and adaptive": dict(group=dict(kind="adaptive"), offline=dict(replace_random=True, score=False)),
}


def compare(corpus, config: RunConfig) -> None:
    objective = objective_of(corpus, config)
    report = objective(corpus[0], CAPTIONS, DRAW, corpus[3])
    terms, above = literal(corpus, objective, config)
    assert set(report.terms) == set(terms)
    for name, value in terms.items():
        assert float(report.terms[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4, abs=1e-5), name
        assert value.abs() > 0.01, f"{name} is too small for the comparison to say anything"
    weights = {"t2i": config.loss.t2i, "i2t": config.loss.i2t}
    total = sum(weights.get(name, config.quintuplet.weight) * value for name, value in terms.items())
    assert float(report.total.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    if above:
        assert [float(x) for x in report.counters["rank/true_above_offline"]] == [sum(above), len(above)]
    else:
        assert "rank/true_above_offline" not in report.counters
    parameters = dict(objective.model.named_parameters())
    ours = torch.autograd.grad(report.total, list(parameters.values()), allow_unused=True)
    expected = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    overall = math.sqrt(sum(float((g**2).sum()) for g in expected if g is not None))
    assert overall > 0.01
    for name, a, b in zip(parameters, ours, expected):
        a, b = (torch.zeros_like(parameters[name]) if g is None else g for g in (a, b))
        scale = max(float(b.norm()), 0.01 * overall)
        assert float((a - b).norm()) <= 1e-4 * scale, (name, float((a - b).norm()) / scale)


@pytest.mark.parametrize("case", CASES)
def test_terms_counters_and_gradient_against_the_loop(corpus, case):
    compare(corpus, config_of(**CASES[case]))


def test_shared_negatives_and_a_pair_without_any(corpus):
    """The other pairs of the batch as online negatives; captions of a single image have none, and add their offline terms
    alone."""
    config = config_of(group=dict(kind="adaptive"))
    config.negatives.shared = True
    compare(corpus, config)
    objective = objective_of(corpus, config)
    report = objective(corpus[0], torch.tensor([0, 1, 2]), DRAW, corpus[3])  # one image
    assert [float(report.terms[f"aoq/online_{name}"].detach()) for name in ("caption", "image")] == [0, 0]
    report.total.backward()
    assert all(p.grad.isfinite().all() for p in objective.model.parameters() if p.grad is not None)


def test_beside_written_sentences_each_term_is_what_it_is_alone(corpus):
    weights = dict(syn=0.5, mlm=0.4, disc=0.3, corr=0.2)
    bank = corpus[0]
    alone = objective_of(corpus, config_of(group=dict(kind="adaptive")))(bank, CAPTIONS, DRAW, corpus[3])
    without = objective_of(corpus, config_of(**weights))(bank, CAPTIONS, DRAW, corpus[3])
    both = objective_of(corpus, config_of(group=dict(kind="adaptive", weight=0.6), **weights))(bank, CAPTIONS, DRAW, corpus[3])
    assert set(both.terms) == set(alone.terms) | set(without.terms)
    for name, term in both.terms.items():
        wanted = alone.terms[name] if name in alone.terms else without.terms[name]
        assert float(term.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4, abs=1e-6), name
    aoq = sum(float(term.detach()) for name, term in alone.terms.items() if name.startswith("aoq/"))
    assert float(both.total.detach()) == pytest.approx(float(without.total.detach()) + 0.6 * aoq, rel=1e-4)
    assert both.forwards == without.forwards + 4 * len(CAPTIONS)


def test_one_forward_with_gradient_and_each_image_in_it_once(corpus):
    objective = objective_of(corpus, config_of(group=dict(kind="adaptive")))
    seen = []
    objective.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]) if torch.is_grad_enabled() else None)
    report = objective(corpus[0], CAPTIONS, DRAW, corpus[3])
    assert len(seen) == 1 and len(seen[0]) == 4 + 2 * 4 * KEEP + 4 * 4
    assert report.forwards == 2 * COUNT * 4 + len(seen[0])
    pairs = seen[0].compact()
    assert len(pairs.texts) == len(seen[0].texts) and len(pairs.images) == len(seen[0].images)
    assert len({tuple(pairs.texts[row].tolist()) for row in range(len(pairs.texts))}) == len(pairs.texts)


def test_without_scoring_no_pair_is_scored(corpus):
    objective = objective_of(corpus, config_of(offline=dict(replace_random=True, score=False)))
    report = objective(corpus[0], CAPTIONS, DRAW, corpus[3])
    assert report.forwards == 4 + 2 * 4 * KEEP
    scored = objective_of(corpus, config_of(offline=dict(replace_random=True)))(corpus[0], CAPTIONS, DRAW, corpus[3])
    assert scored.forwards == 4 * (COUNT + 5) + 4 + 2 * 4 * KEEP  # image ranks 3 // 5 = 0 to 24 // 5 = 4


def test_the_draw_decides(corpus):
    objective = objective_of(corpus, config_of(group=dict(kind="adaptive"), offline=dict(replace_random=True)))
    draws = (DRAW, DRAW, Draw(7, 5, 2), Draw(7, 6, 1))
    totals = [float(objective(corpus[0], CAPTIONS, draw, corpus[3]).total.detach()) for draw in draws]
    assert totals[0] == totals[1] and len(set(totals)) == 3


def test_candidates_that_do_not_reach_are_refused_before_the_first_step(corpus):
    candidates = corpus[3]
    with pytest.raises(UserError, match=r"set offline.last=29"):
        RetrievalObjective.check_candidates(config_of(group=dict(kind="adaptive"), offline=dict(last=32)), candidates)
    with pytest.raises(UserError, match=r"6 negatives .* offline.first=3 to offline.last=7"):
        RetrievalObjective.check_candidates(config_of(offline=dict(replace_random=True, last=7)), candidates)
    four = config_of(offline=dict(replace_random=True, last=7, score=False))  # drawn, and none scored
    RetrievalObjective.check_candidates(four, candidates)


def test_hardest_of_drawn_and_of_ordered_negatives():
    scores = torch.tensor([[0.3, 0.9, 0.5], [0.2, 0.1, 0.8], [0.4, 0.4, 0.4]])
    hard = Hard(torch.zeros(3, 3, dtype=torch.int64), torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool())
    value, valid = hardest_of(scores, hard, ordered=True)
    assert value.tolist()[:2] == pytest.approx([0.3, 0.2]) and valid.tolist() == [True, True, False]
    value, valid = hardest_of(scores, hard, ordered=False)
    assert value.tolist()[:2] == pytest.approx([0.9, 0.2]) and valid.tolist() == [True, True, False]


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["quintuplet.kind=adaptve"], "did you mean 'adaptive'?"),
        (["offline.remine_every=100", "offline.candidates=x"], "offline.remine_every=100 orders candidates that no loss draws"),
        (["quintuplet.kind=adaptive", "offline.candidates=x", "quintuplet.online=false"], "quintuplet.online=false"),
        (["quintuplet.kind=online", "quintuplet.online=false"], "quintuplet.online=false"),
        (["offline.first=9", "offline.last=8"], "offline.last=8 is below offline.first=9"),
        (["offline.replace_random=true", "offline.candidates=x", "negatives.shared=true"], "exclude each other"),
        (["objective=pretrain", "quintuplet.kind=offline", "offline.candidates=x"], "no meaning in pre-training"),
        (["quintuplet.alpha=0"], "quintuplet.alpha=0"),
        (["offline.pool=0"], "offline.pool=0"),
        (["offline.first=-1"], "offline.first=-1"),
        (["quintuplet.weight=-1"], "quintuplet.weight=-1"),
    ],
)
def test_settings_that_contradict_themselves(tmp_path, settings, words):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(UserError) as error:
        load_config(str(tmp_path / "empty.yaml"), settings)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_settings_that_agree(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    path = str(tmp_path / "empty.yaml")
    plain = load_config(path, ["quintuplet.kind=online"])
    assert not needs_candidates(plain.quintuplet, plain.offline)
    for settings in (["quintuplet.kind=offline", "quintuplet.online=false"], ["offline.replace_random=true"]):
        config = load_config(path, [*settings, "offline.candidates=mined", "offline.remine_every=200"])
        assert needs_candidates(config.quintuplet, config.offline)
