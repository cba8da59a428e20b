"""What is recorded for the figures, on a tiny model: each part against a plain computation."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import tagsds
from tagsds.api import Retriever
from tagsds.data.vocabulary import Vocabulary
from tagsds.data.words import Spelling
from tagsds.errors import UserError
from tagsds.figures import example
from tagsds.figures.__main__ import PICTURES, draw_all
from tagsds.negatives.writer import Maskings, SyntheticConfig
from tagsds.scoring.proofread import Word
from tests.small_world import states_of
from tests.trained import save_run

MANY = SyntheticConfig(maskings=30, refills=30)  # an untrained encoder seldom writes what is there


@pytest.fixture(scope="module")
def retriever(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder = tmp_path_factory.mktemp("runs") / "tagsdc"
    save_run(folder, world)
    return tagsds.load(folder, world, "cpu", split="dev")


def test_a_masking_of_one_word_is_found_by_hand(retriever: Retriever) -> None:
    """[CLS] a red circle [SEP], masked in three ways: red and circle, nothing, circle."""
    spelling = Spelling.of(retriever.tokenizer, "a red circle")
    assert len(spelling.pieces) == 3
    chosen = torch.tensor([[[0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]], dtype=torch.bool)
    ids = torch.zeros(1, 5, dtype=torch.int64)
    maskings = Maskings(ids, torch.tensor([5]), ids[:, None].repeat(1, 3, 1), chosen)
    assert example.masking_of(maskings, spelling, start=6) == (2, 2)
    assert example.masking_of(maskings, spelling, start=2) is None  # never masked alone


def test_guesses_are_the_softmax_of_the_masked_word_head(retriever: Retriever) -> None:
    bank, vocab = retriever.gallery.bank, Vocabulary.of(retriever.tokenizer)
    assert bank is not None
    caption = torch.tensor([3])
    ids = bank.tokens[3].long()
    chosen = torch.zeros(1, 2, len(ids), dtype=torch.bool)
    chosen[0, 1, 4] = True
    maskings = Maskings(ids[None], torch.tensor([len(ids)]), ids[None, None].repeat(1, 2, 1), chosen)
    masked = ids.clone()
    masked[4] = vocab.mask
    with torch.no_grad():
        logits = retriever.model.mlm(states_of(retriever.model, bank, masked, int(bank.image_of_caption[3]))[4:5])[0]
    logits[vocab.special()] = -torch.inf
    expected = torch.softmax(logits / 2.0, dim=-1)
    for word, probability in example.guesses(retriever, caption, maskings, 1, tau=2.0):
        assert probability == pytest.approx(float(expected[retriever.tokenizer.convert_tokens_to_ids(word)]), abs=1e-4)
    first = retriever.tokenizer.convert_ids_to_tokens(int(expected.argmax()))
    assert example.guesses(retriever, caption, maskings, 1, tau=2.0)[0][0] == first


def test_lengths_are_those_of_pairs_from_the_shortest_to_the_longest(retriever: Retriever) -> None:
    bank = retriever.gallery.bank
    assert bank is not None
    every = [[len(bank.tokens[c]), int(bank.regions.lengths[bank.image_of_caption[c]])] for c in range(bank.num_captions)]
    found = example.lengths_of_pairs(retriever)
    assert len(found) == 8 and all(pair in every for pair in found)
    totals = sorted(map(sum, every))
    assert sorted(map(sum, found)) == [totals[int(at)] for at in torch.linspace(0, len(totals) - 1, 8).long()]


def test_a_record_is_saved_and_drawn(
    retriever: Retriever, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With heads that find every change: the encoder of this test is untrained."""

    def proofread(self: Retriever, key: str, text: str) -> list[Word]:
        shortest = min(self.captions(key), key=lambda caption: len(self.tokenizer(caption)["input_ids"]))
        pairs = zip(text.split(), shortest.split(), strict=False)
        return [Word(new, 0, 0, 0.9 if new != old else 0.1, old, 0.8) for new, old in pairs]

    monkeypatch.setattr(Retriever, "proofread", proofread)
    found = example.record(retriever, world, MANY)
    found.save(tmp_path / "example.json")
    assert example.Example.load(tmp_path / "example.json") == found
    scores = [score for _, score in found.kept]
    assert scores == sorted(scores, reverse=True) and found.written == 900
    assert sum(count for count, _ in found.dropped.values()) + len(scores) == 900
    changed = [at for at, (new, old) in enumerate(zip(found.kept[0][0].split(), found.words, strict=True)) if new != old]
    assert changed == [found.gap]
    assert Image.open(io.BytesIO(base64.b64decode(found.picture))).size[0] > 10
    assert len(draw_all(tmp_path, found)) == len(PICTURES)


def test_without_an_example_it_is_one_sentence(retriever: Retriever, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Retriever, "proofread", lambda self, key, text: [Word("nothing", 0, 7, 0.1, "else", 0.5)])
    with pytest.raises(UserError, match=r"gives an example .*; train longer"):
        example.record(retriever, world, SyntheticConfig(maskings=2, refills=2))
