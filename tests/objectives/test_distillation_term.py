"""The encoder taught by an ensemble: against pairs forwarded one by one, in a run through DeepSpeed that is cut and resumed, and
what a user is told."""

from __future__ import annotations

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.augment import AugmentConfig, AugmentedBank, WordIds
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.losses.distillation import distillation
from tagsds.models.matchers import MATCHERS
from tagsds.negatives.offline import draw_from_ranks
from tagsds.negatives.random import Hard, mine_shared
from tagsds.objectives import RetrievalObjective
from tagsds.objectives.retrieval.draws import Draws
from tagsds.scoring.scorer import Scorer
from tests import launch
from tests.candidates import candidates_of
from tests.small_world import model_of, score_of
from tests.trained import save_run

CAPTIONS = torch.tensor([3, 41, 4, 17])  # 3 and 4 belong to one image
DRAW = Draw(7, 5, 1)


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


@pytest.fixture(scope="module")
def teachers(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {str(folder / name): save_run(folder / name, world, seed=seed) for name, seed in (("one", 11), ("two", 12))}


def objective_of(corpus, *overrides: str) -> RetrievalObjective:
    config = load_config("baseline-base-coco", ["negatives.shared=true", "negatives.keep=2", *overrides])
    model = model_of(corpus[1])
    return RetrievalObjective(model, config, corpus[2], Scorer(model))


def taught(corpus, teachers, *overrides: str) -> RetrievalObjective:
    return objective_of(corpus, f"distil.teachers=[{','.join(teachers)}]", *overrides)


@pytest.mark.parametrize("offline", [0, 3])
@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(drop_regions=0.3, mirror=True, drop_words=0.3)])
def test_the_term_against_pairs_one_by_one(world, corpus, teachers, augment, offline):
    """Teachers score what augmentation has left of a pair, as the student does. Offline candidates join the lists."""
    bank, candidates = corpus[0], candidates_of(corpus[0], 30, 7)
    if augment.changes:
        bank = AugmentedBank(bank, augment, WordIds.of(load_tokenizer(world / "tokenizer")), DRAW)
    settings = ["distil.weight=0.7", "distil.temperature=2", f"distil.offline={offline}", "offline.first=3", "offline.last=24"]
    objective = taught(corpus, teachers, *settings)
    assert objective.needs_candidates(objective.config) == (offline > 0)
    found, plain = objective(bank, CAPTIONS, DRAW, candidates), objective_of(corpus)(bank, CAPTIONS, DRAW)
    images, captions = mine_shared(bank, CAPTIONS, 2, objective.scorer)
    if offline:
        more = draw_from_ranks(candidates, bank, CAPTIONS, 3, 3, 24, DRAW.generator("cpu", "offline candidates of the teachers"))
        images, captions = (
            Hard(torch.cat([a.index, b.index], dim=1), torch.cat([a.valid, b.valid], dim=1))
            for a, b in zip((images, captions), more, strict=True)
        )
    own = bank.image_of_caption[CAPTIONS]

    def row(model, texts, of_images):
        pairs = zip(texts, of_images, strict=True)
        seen = [(bank.hidden_text_table(torch.tensor([int(c)])).values, int(i)) for c, i in pairs]
        return torch.stack([score_of(model, bank, ids, i) for ids, i in seen])

    total = 0.0
    for name, hard, t2i in (("distil_t2i", images, True), ("distil_i2t", captions, False)):
        tables = []
        for model in (objective.model, *teachers.values()):
            rows = []
            for b, caption in enumerate(CAPTIONS):
                others = hard.index[b]
                texts = [caption] * (1 + len(others)) if t2i else [caption, *others]
                rows.append(row(model, texts, [own[b], *others] if t2i else [own[b]] * (1 + len(others))))
            tables.append(torch.stack(rows))
        valid = torch.cat([torch.ones(4, 1, dtype=torch.bool), hard.valid], dim=1)
        expected = distillation(tables[0], torch.stack(tables[1:]), valid, 2.0) / 2
        assert float(found.terms[name].detach()) == pytest.approx(float(expected.detach()), rel=1e-3)  # of small logits
        total += 0.7 * float(expected.detach())
    assert float(found.total.detach()) == pytest.approx(float(plain.total.detach()) + total, rel=1e-4)
    listed = images.index.numel() + captions.index.numel()
    assert found.forwards == plain.forwards + 2 * (4 + listed) + listed - 2 * 4 * 2  # each teacher scores what stands in the lists


def test_written_sentences_against_pairs_one_by_one(corpus, teachers):
    """The list of a caption: its true pair and the hardest sentences written for it, as many as are left."""
    bank = corpus[0]
    settings = ["loss.syn=0.5", "synthetic.maskings=2", "synthetic.refills=3"]
    objective = taught(corpus, teachers, *settings, "distil.synthetic=0.3", "distil.temperature=2")
    plain = taught(corpus, teachers, *settings, "distil.temperature=2")
    draws = Draws(objective.negatives, bank, CAPTIONS, DRAW)
    written, total = draws.written, 0.0
    for b, caption in enumerate(CAPTIONS.tolist()):
        own = [row[row != corpus[2].pad] for row in written.ids[written.caption == b]]
        sentences, image = [bank.tokens[caption], *own], int(draws.images[b])
        models = (objective.model, *teachers.values())
        scores = [torch.stack([score_of(model, bank, ids, image) for ids in sentences])[None].detach() for model in models]
        total += float(distillation(scores[0], torch.stack(scores[1:]), torch.ones_like(scores[0]).bool(), 2.0)) / len(CAPTIONS)
    assert len(written.ids) > 4 and total > 0
    found, less = objective(bank, CAPTIONS, DRAW), plain(bank, CAPTIONS, DRAW)
    assert float(found.terms["distil_syn"].detach()) == pytest.approx(total, rel=1e-3)
    assert float(found.total.detach()) == pytest.approx(float(less.total.detach()) + 0.3 * total, rel=1e-4)
    assert found.forwards == less.forwards + 2 * (4 + len(written.ids))


def test_written_sentences_that_are_all_filtered_leave_the_graph_whole(corpus, teachers, monkeypatch):
    objective = taught(corpus, teachers, "loss.mlm=0.1", "synthetic.maskings=1", "synthetic.refills=2", "distil.synthetic=1")
    monkeypatch.setattr("tagsds.negatives.tailored._repeats", lambda candidates: torch.ones(candidates.shape[:2], dtype=torch.bool))
    found = objective(corpus[0], CAPTIONS, DRAW)
    assert float(found.terms["distil_syn"].detach()) == 0.0
    found.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.model.layers.parameters())


def test_teachers_are_no_part_of_what_is_trained_or_kept(corpus, teachers):
    objective, plain = taught(corpus, teachers), objective_of(corpus)
    assert objective.state_dict().keys() == plain.state_dict().keys()
    before = [p.clone() for model in (s.model for s in objective.terms[-1][1].teachers.scorers) for p in model.parameters()]
    objective(corpus[0], CAPTIONS, DRAW).total.backward()
    after = [p for model in (s.model for s in objective.terms[-1][1].teachers.scorers) for p in model.parameters()]
    assert all(p.grad is None and not p.requires_grad and torch.equal(p, old) for p, old in zip(after, before, strict=True))
    assert all(p.grad is not None for p in objective.model.layers.parameters())


def test_a_run_that_was_cut_goes_on_to_the_same_bits(world, teachers, tmp_path):
    settings = [*launch.TINY, "log.checkpoint_every=3", f"distil.teachers=[{','.join(teachers)}]"]
    launch.train(world, tmp_path / "whole", "ds_configs/zero1.json", settings)
    launch.cut(tmp_path / "whole", tmp_path / "cut", 3)
    launch.train(world, tmp_path / "cut", "ds_configs/zero1.json", settings, resume=True)
    whole, cut = (launch.rows(tmp_path / name) for name in ("whole", "cut"))
    assert [row["loss/distil_t2i"] for row in whole] == [row["loss/distil_t2i"] for row in cut]
    assert whole[0]["loss/distil_t2i"] > 0
    weights = [(tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("ds_config", "rounding"), [("zero1", 1e-4), ("zero3_bf16", 0.05)])
def test_two_ranks_see_what_one_sees(world, teachers, tmp_path, ds_config, rounding):
    settings = [*launch.TINY, "optimiser.steps=2", "optimiser.warmup_steps=1", f"distil.teachers=[{','.join(teachers)}]"]
    settings += ["loss.syn=0.1", "synthetic.maskings=1", "synthetic.refills=3", "distil.synthetic=1"]
    launch.train(world, tmp_path / "one", f"ds_configs/{ds_config}.json", [*settings, "batch.accumulation=2"])
    launch.train(world, tmp_path / "two", f"ds_configs/{ds_config}.json", settings, ranks=2)
    for term in ("distil_t2i", "distil_syn"):
        one, two = ([row[f"loss/{term}"] for row in launch.rows(tmp_path / name)] for name in ("one", "two"))
        assert min(one) > 0 and two == pytest.approx(one, rel=rounding)


def test_what_a_user_is_told(world, corpus, teachers, tmp_path):
    save_run(tmp_path / "pretrain", world, ["itm", "mlm"])
    kind = MATCHERS["vsrn"]
    words, width = corpus[1].vocab_size, corpus[1].feature_dim
    matcher = kind.model(kind.config(vocab_size=words, region_dim=width, word_size=8, embed_size=12))
    matcher.save_pretrained(tmp_path / "vsrn" / "export")
    save_run(tmp_path / "wide", world, region_dim=width + 1)
    for name, said in {
        "none": "does not exist", "pretrain": "has no trained ranking head; give a fine-tuned run", "vsrn": "a matcher",
        "wide": f"region_dim {width + 1}, the model {width}; give encoders of the same corpus",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=said):
            taught(corpus, [str(tmp_path / name)])
    with pytest.raises(UserError, match=r"distil.teachers has no meaning in pre-training"):
        load_config("published-pretrain-base", ["distil.teachers=[x]"])
    with pytest.raises(UserError, match=r"distil.teachers teach the encoder; remove them"):
        load_config("scan-coco", ["distil.teachers=[x]"])
    for key, what in {"synthetic": "written sentences", "offline": "offline candidates"}.items():
        with pytest.raises(UserError, match=f"distil.{key} gives teachers {what} to judge; name them"):
            load_config("tags-base-coco", [f"distil.{key}=1"])
    with pytest.raises(UserError, match=r"none is written; set loss.syn"):
        load_config("baseline-base-coco", ["distil.synthetic=1", "distil.teachers=[x]"])
    with pytest.raises(UserError, match=r"distil.temperature"):
        load_config("baseline-base-coco", ["distil.temperature=0"])
