"""loss.more.contrast and loss.more.contrast_syn: against pairs forwarded one by one; and the level of the logits, which they do not
see and the hinge of syn does."""

from __future__ import annotations

import math

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.negatives.random import mine_shared
from tagsds.objectives.retrieval import RetrievalObjective
from tagsds.objectives.retrieval.draws import Draws
from tagsds.scoring.scorer import Scorer
from tests.small_world import caption_ids, model_of, score_of

CAPTIONS = torch.tensor([3, 41, 4, 17])  # 3 and 4 belong to one image
DRAW = Draw(7, 5, 1)
WRITES = ("loss.more.contrast_syn=0.3", "synthetic.maskings=2", "synthetic.refills=3")


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


def objective_of(corpus, *overrides: str) -> RetrievalObjective:
    config = load_config("baseline-base-coco", ["negatives.shared=true", "negatives.keep=2", *overrides])
    model = model_of(corpus[1])
    return RetrievalObjective(model, config, corpus[2], Scorer(model))


def cross_entropy(true: float, others: list[float]) -> float:
    return -math.log(math.exp(true) / (math.exp(true) + sum(map(math.exp, others))))


def test_written_sentences_against_pairs_one_by_one(corpus):
    bank, objective = corpus[0], objective_of(corpus, *WRITES)
    draws = Draws(objective.negatives, bank, CAPTIONS, DRAW)
    written, expected = draws.written, []
    for b, caption in enumerate(CAPTIONS.tolist()):
        image = int(draws.images[b])
        sentences = [row[row != corpus[2].pad] for row in written.ids[written.caption == b]]
        true = score_of(objective.model, bank, caption_ids(bank, caption), image).item()
        if sentences:
            expected.append(cross_entropy(true, [score_of(objective.model, bank, ids, image).item() for ids in sentences]))
    assert len(written.ids) > 4
    found, less = objective(bank, CAPTIONS, DRAW), objective_of(corpus)(bank, CAPTIONS, DRAW)
    assert float(found.terms["contrast_syn"].detach()) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert float(found.total.detach()) == pytest.approx(float(less.total.detach()) + 0.3 * sum(expected) / len(expected), rel=1e-5)


def test_hard_images_and_captions_against_pairs_one_by_one(corpus):
    bank, objective = corpus[0], objective_of(corpus, "loss.more.contrast=0.3")
    images, captions = mine_shared(bank, CAPTIONS, 2, objective.scorer)
    expected: dict[str, list[float]] = {"contrast_t2i": [], "contrast_i2t": []}

    def z(caption: int, image: int) -> float:
        return score_of(objective.model, bank, caption_ids(bank, caption), image).item()

    for b, caption in enumerate(CAPTIONS.tolist()):
        own = int(bank.image_of_caption[caption])
        hard_images = images.index[b][images.valid[b]].tolist()
        hard_captions = captions.index[b][captions.valid[b]].tolist()
        expected["contrast_t2i"].append(cross_entropy(z(caption, own), [z(caption, image) for image in hard_images]))
        expected["contrast_i2t"].append(cross_entropy(z(caption, own), [z(other, own) for other in hard_captions]))
    found = objective(bank, CAPTIONS, DRAW)
    for name, values in expected.items():
        assert float(found.terms[name].detach()) == pytest.approx(sum(values) / len(values), rel=1e-5), name


def test_the_hinge_goes_flat_where_logits_are_high_and_the_contrast_does_not(corpus):
    """The gradient of the encoder's layers by each, as the model is and with 20 added to every ranking logit."""
    norms = {}
    for name, weights in {"syn": ("loss.syn=1",), "contrast_syn": ("loss.more.contrast_syn=1",)}.items():
        objective = objective_of(corpus, "loss.t2i=0", "loss.i2t=0", *weights, "synthetic.maskings=2", "synthetic.refills=3")
        bias = dict(objective.model.rank.named_parameters())["bias"]
        for shift in (0.0, 20.0):
            with torch.no_grad():
                bias.add_(shift)
            objective.model.zero_grad()
            objective(corpus[0], CAPTIONS, DRAW).total.backward()
            norms[name, shift] = math.sqrt(sum(float((p.grad**2).sum()) for p in objective.model.layers.parameters()))
    assert norms["syn", 0.0] > 1e-3 and norms["syn", 20.0] < 1e-4 * norms["syn", 0.0]
    assert norms["contrast_syn", 20.0] == pytest.approx(norms["contrast_syn", 0.0], rel=1e-3)


def test_a_weight_of_its_own_writes_and_all_filtered_leaves_the_graph_whole(corpus, monkeypatch):
    objective = objective_of(corpus, *WRITES)
    assert objective.writes
    monkeypatch.setattr("tagsds.negatives.tailored._repeats", lambda candidates: torch.ones(candidates.shape[:2], dtype=torch.bool))
    found = objective(corpus[0], CAPTIONS, DRAW)
    assert float(found.terms["contrast_syn"].detach()) == 0.0
    found.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.model.layers.parameters())
    assert not objective_of(corpus, "loss.more.contrast=1").writes
