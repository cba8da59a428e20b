"""Whole steps on an augmented bank: each objective reads the changed tables, twice the same."""

import pytest
import torch

from tagsds.data.augment import Augmentation, AugmentConfig
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, corpus_tokenizer
from tagsds.draw import Draw
from tests.objectives.test_matching import objective_of as matcher_of
from tests.objectives.test_pretrain import objective_of as pretraining_of
from tests.objectives.test_retrieval import CAPTIONS, DRAW, config_of
from tests.objectives.test_retrieval import objective_of as retrieval_of

ALL = AugmentConfig(feature_noise=0.2, drop_regions=0.3, mirror=True, drop_words=0.2)


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, Vocabulary.of(corpus_tokenizer(manifest))


@pytest.mark.parametrize("kind", ["retrieval", "itm", "mlm", "mrfr", "mrckl", "mrc", "scan"])
def test_a_step(corpus, kind):
    bank, manifest, _ = corpus
    if kind == "retrieval":
        objective = retrieval_of(corpus, config_of(maskings=3, refills=4))
    elif kind == "scan":
        objective = matcher_of(corpus, "scan", "online")
    else:
        objective = pretraining_of(corpus, **{kind: 1})
    objective.eval()  # without dropout
    augment = Augmentation(ALL, corpus_tokenizer(manifest))
    totals = [float(objective(augment(bank, draw), CAPTIONS, DRAW).total.detach()) for draw in (DRAW, DRAW, Draw(7, 5, 2))]
    plain = float(objective(bank, CAPTIONS, DRAW).total.detach())
    assert all(torch.tensor([*totals, plain]).isfinite())
    assert totals[0] == totals[1]
    assert len({totals[0], totals[2], plain}) == 3
