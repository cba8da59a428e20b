"""Who refills masked captions: the encoder as it is, as it was, or nobody; and sentences that are probably true, kept at will."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.negatives.tailored import filter_candidates
from tagsds.negatives.writer import Maskings, SyntheticConfig, phrase_pieces
from tagsds.objectives.retrieval import RetrievalObjective
from tagsds.objectives.retrieval.draws import Draws
from tagsds.scoring.scorer import Scorer
from tests.small_world import model_of

CAPTIONS = torch.tensor([3, 41, 17])
DRAW = Draw(7, 5, 1)


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


def objective_of(corpus, writer: str) -> RetrievalObjective:
    config = RunConfig()
    config.negatives.shared, config.negatives.keep = True, 4
    config.synthetic.maskings, config.synthetic.refills, config.synthetic.writer = 3, 4, writer
    config.loss.syn = config.loss.mlm = 0.5
    model = model_of(corpus[1])
    return RetrievalObjective(model, config, corpus[2], Scorer(model))


def written_by(objective: RetrievalObjective, bank: Bank) -> torch.Tensor:
    return Draws(objective.negatives, bank, CAPTIONS, DRAW).everything_written.ids


def test_only_the_live_encoder_writes_otherwise_once_it_has_learnt(corpus):
    before, after = {}, {}
    for writer in ("live", "frozen", "words"):
        objective = objective_of(corpus, writer)
        before[writer] = written_by(objective, corpus[0])
        with torch.no_grad():
            objective.model.mlm.decoder.bias.add_(3 * torch.randn(len(objective.model.mlm.decoder.bias)))
        after[writer] = written_by(objective, corpus[0])
    same = {writer: before[writer].shape == after[writer].shape and torch.equal(before[writer], after[writer]) for writer in before}
    assert same == {"live": False, "frozen": True, "words": True}
    assert torch.equal(before["live"], before["frozen"]) and not torch.equal(before["live"], before["words"])


def test_a_frozen_copy_is_no_part_of_what_is_trained_or_kept(corpus):
    live, copied = objective_of(corpus, "live"), objective_of(corpus, "frozen")
    assert copied.state_dict().keys() == live.state_dict().keys()
    assert len(list(copied.parameters())) == len(list(live.parameters()))
    assert not any(parameter.requires_grad for parameter in copied.negatives.writer.parameters())
    assert live.negatives.writer is live.model


def test_a_partitioned_encoder_cannot_be_copied(corpus):
    model = model_of(corpus[1])
    next(model.parameters()).ds_id = 0
    config = RunConfig()
    config.synthetic.writer = "frozen"
    with pytest.raises(UserError, match="in parts at ZeRO stage 3; take a lower stage"):
        RetrievalObjective(model, config, corpus[2], Scorer(model))
    with pytest.raises(UserError, match="writer"):
        SyntheticConfig(writer="gpt").check("synthetic")


def test_pieces_of_phrases_by_hand():
    # captions: [CLS] 11 12 13 [SEP] with the phrases (11 12) and (13), and [CLS] 21 22 [SEP] with the phrase (21)
    tokens = Ragged.from_rows([torch.tensor([2, 11, 12, 13, 3]), torch.tensor([2, 21, 22, 3])])
    spans = Ragged.from_rows([torch.tensor([[0, 1], [0, 2], [1, 3]]), torch.tensor([[0, 1]])])
    nothing = torch.zeros(2, dtype=torch.int64)
    bank = Bank(Ragged(tokens.values.int(), tokens.lengths), Ragged(spans.values.int(), spans.lengths), nothing,
                Ragged.from_rows([torch.tensor([0, 1])]), Ragged.from_rows([torch.zeros(1, 2)]), torch.zeros(1, 4))  # fmt: skip
    ids = torch.tensor([[2, 21, 22, 3, 0], [2, 11, 12, 13, 3]])  # captions 1 and 0
    chosen = torch.zeros(2, 1, 5, dtype=torch.bool)
    chosen[0, 0, [1, 2]] = chosen[1, 0, [2, 3]] = True  # 21 begins a phrase, 22 does not; 12 does not, 13 does
    maskings = Maskings(ids, torch.tensor([4, 5]), ids[:, None], chosen)
    drawn = phrase_pieces(bank, torch.tensor([1, 0]), maskings, 3000, Draw(0, 0, 0))
    assert drawn.shape == (4, 3000)
    assert phrase_pieces(bank, torch.tensor([1, 0]), maskings, 3000, Draw(0, 0, 0)).equal(drawn)
    for row, begins in enumerate((True, False, False, True)):
        expected = {11, 13, 21} if begins else {12}
        assert set(drawn[row].tolist()) == expected
        if begins:
            counts = torch.bincount(drawn[row])[[11, 13, 21]]
            assert counts.float().div(3000).sub(1 / 3).abs().max() < 0.04


def test_words_need_no_forward_and_a_corpus_with_phrases(corpus):
    bank = corpus[0]
    counted = {}
    for writer in ("live", "words"):
        draws = Draws(objective_of(corpus, writer).negatives, bank, CAPTIONS, DRAW)
        counted[writer] = (draws.forwards + 0, len(draws.everything_written.ids), draws.forwards)
    assert counted["words"] == (0, counted["words"][1], counted["words"][1])
    assert counted["live"][2] == counted["live"][1] + 9  # three captions, masked three times
    none = replace(bank, spans=Ragged(bank.spans.values[:0], torch.zeros_like(bank.spans.lengths)))
    with pytest.raises(UserError, match="this corpus has none"):
        written_by(objective_of(corpus, "words"), none)


def test_sentences_that_are_probably_true_are_kept_on_request():
    vocab = Vocabulary(size=30, pad=0, unk=1, cls=2, sep=3, mask=4)
    ids = torch.tensor([[2, 10, 11, 3]])
    annotated = torch.tensor([[[2, 10, 11, 3], [2, 12, 13, 3]]])
    candidates = torch.tensor([[[2, 10, 12, 3], [2, 10, 14, 3], [2, 10, 11, 3], [2, 10, 14, 3]]])  # true, false, its own, repeated
    assert filter_candidates(candidates, ids, annotated, vocab).keep.tolist() == [[False, True, False, False]]
    found = filter_candidates(candidates, ids, annotated, vocab, drop_true=False)
    assert found.keep.tolist() == [[True, True, False, False]]
    assert {name: int(count) for name, count in found.counts.items()} == {
        "written": 4, "not_annotated": 3, "distinct": 2, "false_of_image": 2}  # fmt: skip
