"""The matching objective against the formula, a pair at a time; what it encodes; VSRN's captioning beside it."""

from __future__ import annotations

import copy

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.losses.quintuplet import KINDS
from tagsds.models.matchers import MATCHERS
from tagsds.objectives import MatchingObjective
from tagsds.scoring.scorer import Scorer
from tests.candidates import candidates_of


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "train", first=20)
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


@pytest.fixture(scope="module")
def candidates(corpus):
    return candidates_of(corpus[0], 10, 5)


def objective_of(corpus, kind: str, loss: str, *overrides: str) -> MatchingObjective:
    _, manifest, vocab = corpus
    make_config, make_model = MATCHERS[kind].config, MATCHERS[kind].model
    torch.manual_seed(3)
    model = make_model(make_config(vocab_size=manifest.vocab_size, region_dim=manifest.feature_dim, word_size=6, embed_size=8))
    config = load_config(
        f"coco-boxes-{kind}",
        [
            f"matcher.kind={kind}",
            f"quintuplet.kind={loss}",
            "offline.first=1",
            "offline.last=9",
            "quintuplet.warmup_steps=0",
            *overrides,
        ],
    )
    return MatchingObjective(model.train(), config, vocab, Scorer(model))


def one(model, bank, image: int, caption: int):
    return model.similarity(bank.image_table(torch.tensor([image])), bank.text_table(torch.tensor([caption])))[0, 0]


@pytest.mark.parametrize("kind", ["scan", "bfan"])
@pytest.mark.parametrize("loss", KINDS)
def test_terms_equal_the_formula_pair_by_pair(corpus, candidates, kind, loss):
    bank = corpus[0]
    objective = objective_of(corpus, kind, loss)
    captions = torch.tensor([0, 1, 17, 33, 60])  # 0 and 1 describe the same image
    draw = Draw(5, 2, 0)
    report = objective(bank, captions, draw, candidates)
    own = bank.image_of_caption[captions].tolist()
    drawn = objective.drawn(bank, captions, draw, candidates)
    m, total = objective.model, 0.0
    for row, caption in enumerate(captions.tolist()):
        image = own[row]
        true = one(m, bank, image, caption)
        others = [b for b in range(5) if own[b] != image]
        hard_caption = max(one(m, bank, image, int(captions[b])) for b in others)
        hard_image = max(one(m, bank, own[b], caption) for b in others)
        on_c, on_i = torch.relu(0.2 + hard_caption - true), torch.relu(0.2 + hard_image - true)
        if loss == "online":
            assert drawn is None
            total = total + on_c + on_i
            continue
        off_caption, off_image = int(drawn.caption_off[row]), int(drawn.image_off[row])
        at_caption, at_image = one(m, bank, image, off_caption), one(m, bank, off_image, caption)
        w_c = 1.5 - (at_caption - hard_caption) / 0.3 if loss == "adaptive" else 1.0
        w_i = 1.5 - (at_image - hard_image) / 0.3 if loss == "adaptive" else 1.0
        total = total + w_c * on_c + w_i * on_i + torch.relu(at_caption - true) + torch.relu(at_image - true)
        if loss != "offline":
            total = total + torch.relu(one(m, bank, off_image, off_caption) - true)
            total = total + torch.relu(one(m, bank, int(drawn.other_image[row]), int(drawn.other_caption[row])) - true)
    assert float(report.total) == pytest.approx(float(total), rel=1e-5)
    report.total.backward()
    measured = [p.grad.clone() for p in objective.parameters()]
    objective.zero_grad()
    total.backward()
    for ours, plain in zip(measured, [p.grad for p in objective.parameters()], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_vsrn_adds_its_captioning_loss_with_its_weight(corpus):
    bank, captions = corpus[0], torch.tensor([3, 21, 44, 50])
    objectives = [objective_of(corpus, "vsrn", "online", f"matcher.caption_weight={weight}") for weight in (1.0, 0.5, 0.0)]
    reports = []
    for objective in objectives:
        torch.manual_seed(0)  # one dropout mask for all
        reports.append(objective(bank, captions, Draw(1, 0, 0)))
    whole, half, none = (float(r.total) for r in reports)
    assert "captioning" in reports[0].terms and "captioning" not in reports[2].terms
    captioning = float(reports[0].terms["captioning"])
    assert captioning > 1.0
    assert whole - none == pytest.approx(captioning, rel=1e-5)
    assert half - none == pytest.approx(captioning / 2, rel=1e-5)


def batches_of(objective: MatchingObjective, monkeypatch) -> list[list[int]]:
    """Filled, at each forward, with the region counts of the images of each batch that is encoded."""
    seen: list[list[int]] = []
    plain = objective.model.encode_images
    monkeypatch.setattr(objective.model, "encode_images", lambda images: seen.append(images.lengths.tolist()) or plain(images))
    return seen


def test_batchnorm_sees_the_published_batches(corpus, candidates, monkeypatch):
    """Released AOQ encodes I, I_off and I'_off of the pairs in three forwards, an image of two pairs twice: each BatchNorm has
    these three batches, in this order."""
    bank, captions = corpus[0], torch.tensor([0, 1, 17, 33, 60])  # 0 and 1 describe the same image
    objective = objective_of(corpus, "vsrn", "adaptive", "matcher.caption_weight=0")
    model = objective.model
    with torch.no_grad():
        for layer in model.graph:  # begins at 0, where its statistics would not matter
            layer.norm.weight.fill_(1.0)
    plain = copy.deepcopy(model)
    draw = Draw(5, 2, 0)
    drawn = objective.drawn(bank, captions, draw, candidates)
    groups = [bank.image_of_caption[captions], drawn.image_off, drawn.other_image]
    seen = batches_of(objective, monkeypatch)
    report = objective(bank, captions, draw, candidates)
    assert seen == [bank.regions.lengths[group].tolist() for group in groups]

    true, off, other = (plain.encode_images(bank.image_table(group)).vectors[:, 0] for group in groups)
    said, said_off, said_other = (
        plain.encode_captions(bank.text_table(group)).vectors[:, 0] for group in (captions, drawn.caption_off, drawn.other_caption)
    )
    own = (true * said).sum(1)
    for name, score in (("offline_caption", true * said_off), ("offline_image", off * said), ("offline_both", off * said_off),
                        ("offline_others", other * said_other)):  # fmt: skip
        assert float(report.terms[name]) == pytest.approx(float(torch.relu(score.sum(1) - own).sum()), rel=1e-5, abs=1e-6), name
    for key, buffer in plain.named_buffers():  # three updates of the running statistics, in the same order
        torch.testing.assert_close(model.get_buffer(key), buffer, msg=lambda m, key=key: f"{key}: {m}")
    assert int(model.graph[0].norm.num_batches_tracked) == 3

    seen.clear()
    objective.eval()(bank, captions, draw, candidates)  # running statistics: each distinct image once
    assert [len(batch) for batch in seen] == [len(torch.cat(groups).unique())]


@pytest.mark.parametrize(("kind", "settings"), [("scan", []), ("bfan", []), ("vsrn", ["matcher.caption_weight=0"])])
def test_a_matcher_without_batchnorm_encodes_each_image_once(corpus, candidates, monkeypatch, kind, settings):
    bank, captions = corpus[0], torch.tensor([0, 1, 17, 33, 60])
    objective = objective_of(corpus, kind, "adaptive", *settings)
    if kind == "vsrn":
        objective.model.graph = torch.nn.ModuleList()
    seen, draw = batches_of(objective, monkeypatch), Draw(5, 2, 0)
    objective(bank, captions, draw, candidates)
    drawn = objective.drawn(bank, captions, draw, candidates)
    wanted = torch.cat([bank.image_of_caption[captions], drawn.image_off, drawn.other_image])
    assert seen == [bank.regions.lengths[wanted.unique()].tolist()]


def test_the_same_draw_gives_the_same_loss(corpus, candidates):
    objective = objective_of(corpus, "vsrn", "adaptive").eval()
    losses = [float(objective(corpus[0], torch.tensor([3, 21, 44]), Draw(1, s, 0), candidates).total) for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_warm_up_takes_all_negatives_of_the_batch_and_none_offline(corpus):
    bank, captions = corpus[0], torch.tensor([0, 1, 17, 33])  # 0 and 1 describe the same image
    objective = objective_of(corpus, "scan", "adaptive", "quintuplet.warmup_steps=5")
    report = objective(bank, captions, Draw(5, 4, 0))
    own, m = bank.image_of_caption[captions].tolist(), objective.model
    expected = 0.0
    for row, caption in enumerate(captions.tolist()):
        true = one(m, bank, own[row], caption)
        others = [b for b in range(4) if own[b] != own[row]]
        expected += sum(float(torch.relu(0.2 + one(m, bank, own[row], int(captions[b])) - true)) for b in others) / len(others)
        expected += sum(float(torch.relu(0.2 + one(m, bank, own[b], caption) - true)) for b in others) / len(others)
    assert set(report.terms) == {"online_caption", "online_image"}
    assert float(report.total) == pytest.approx(expected, rel=1e-5)
