"""A loss term from outside the package: weight loss.more.<name>, value against the formula, and its gradient in the total."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tagsds.config import load_config
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.objectives import RetrievalObjective
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms import TERMS, TermOutput
from tagsds.scoring.scorer import Scorer
from tests.small_world import model_of


class Certainty:
    """mean over the true pairs of (1 - s(I, T))^2: pulls true pairs to a score of 1, without negatives."""

    heads: tuple[str, ...] = ()

    def ask(self, draws: Draws, plan: Plan, true: Place) -> None:
        return None  # the true pairs are in the forward already

    def value(self, asked: None, draws: Draws, states: States, true: Tensor) -> TermOutput:
        return TermOutput({"certain": (1 - true).square().mean()})


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(TERMS, "certain", lambda loss: Certainty())


def step(world, *overrides: str):
    bank, manifest = load_bank(world, "train", first=20)
    model = model_of(manifest)
    config = load_config("baseline-base-coco", ["negatives.count=5", "negatives.keep=2", *overrides])
    objective = RetrievalObjective(model, config, Vocabulary.of(load_tokenizer(world / "tokenizer")), Scorer(model))
    output = objective(bank, torch.tensor([0, 7, 31, 55]), Draw(3, 0, 0))
    output.total.backward()
    return output, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_term_enters_the_total_with_its_weight(world):
    plain, plain_gradient = step(world)
    output, gradient = step(world, "loss.more.certain=0.3")
    certain = (1 - output.scores["true"]).square().mean()
    assert float(output.terms["certain"].detach()) == pytest.approx(float(certain), rel=1e-6)
    assert float(output.total.detach()) == pytest.approx(float(plain.total.detach()) + 0.3 * float(certain), rel=1e-5)
    assert not torch.allclose(gradient, plain_gradient)
    assert output.forwards == plain.forwards  # no pair was added


def test_a_misspelt_term_names_the_nearest(world):
    with pytest.raises(UserError, match=r"loss.more.certian: there is no such term; did you mean 'certain'\?"):
        step(world, "loss.more.certian=1")
