"""The Python interface on a tiny model: every answer against the literal forward of one pair."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import tagsds
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import load_tokenizer
from tagsds.data.words import Spelling, join_pieces, spell, words_of
from tagsds.models.matchers import MATCHERS
from tests.launch import ROOT
from tests.small_world import score_of, states_of
from tests.trained import save_run

SENTENCE = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tagsdc"
    return folder, save_run(folder, world)


@pytest.fixture(scope="module")
def retriever(run, world):
    return tagsds.load(run[0], world, "cpu", split="dev")


@pytest.fixture(scope="module")
def bank(world):
    return load_bank(world, "dev")[0]


def ids_of(retriever, text: str) -> torch.Tensor:
    return torch.tensor(retriever.tokenizer(text)["input_ids"])


def regions_of(bank, row: int) -> tagsds.Regions:
    a, b = int(bank.regions.offsets[row]), int(bank.regions.offsets[row + 1])
    return tagsds.Regions(bank.regions.values[a:b].float().numpy(), bank.boxes[a:b].numpy())


def test_importing_is_cheap_and_loads_no_deepspeed():
    code = (
        "import sys, tagsds; assert 'torch' not in sys.modules, 'torch'; assert 'load' in dir(tagsds); "
        "tagsds.load; bad = [m for m in sys.modules if m.startswith('deepspeed')]; assert not bad, bad; "
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = tagsds.lode
    assert (ROOT / "tagsds" / "py.typed").is_file()


def test_scores_are_sigmoids_of_the_ranking_logit(run, retriever, bank):
    texts = [SENTENCE, "a square", bank.texts[7]]
    found = retriever.score([bank.keys[3], regions_of(bank, 5)], texts)
    assert found.shape == (2, 3) and found.dtype == torch.float32
    with torch.no_grad():
        expected = [[torch.sigmoid(score_of(run[1], bank, ids_of(retriever, text), row)) for text in texts] for row in (3, 5)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(retriever.score(bank.keys[3], SENTENCE), found[:1, :1])
    assert retriever.score([], SENTENCE).shape == (0, 1)
    several = retriever.score((bank.keys[3], regions_of(bank, 5)), texts)
    torch.testing.assert_close(several, found)
    torch.testing.assert_close(retriever.score(tuple(regions_of(bank, 5)), texts), found[1:])


def test_search_orders_the_whole_split(retriever, bank):
    scores = retriever.score(list(retriever.keys), SENTENCE).flatten()
    hits = retriever.search(SENTENCE, 4)
    order = scores.argsort(descending=True)[:4].tolist()
    assert [hit.number for hit in hits] == order and [hit.key for hit in hits] == [bank.keys[n] for n in order]
    assert [hit.score for hit in hits] == pytest.approx(scores[order].tolist(), abs=1e-5) and hits[0].caption is None
    few = retriever.search(SENTENCE, 4, among=[2, 9])
    assert sorted(hit.number for hit in few) == [2, 9]


def test_search_by_an_image_finds_captions(retriever, bank):
    scores = retriever.score(bank.keys[2], list(bank.texts)).flatten()
    for query in (bank.keys[2], regions_of(bank, 2)):
        hits = retriever.search(query, 3)
        assert [hit.score for hit in hits] == pytest.approx(scores.sort(descending=True).values[:3].tolist(), abs=1e-5)
        assert all(hit.caption == bank.texts[hit.number] for hit in hits)
        assert all(hit.key == bank.keys[int(bank.image_of_caption[hit.number])] for hit in hits)
    assert retriever.captions(bank.keys[2]) == [bank.texts[int(n)] for n in bank.captions_of_image[2]]
    assert retriever.search(bank.keys[2], 1, by="sentence")[0].caption is None


def test_proofreading_joins_the_pieces_of_a_word(run, retriever, bank):
    words = retriever.proofread(bank.keys[4], SENTENCE)
    assert [word.text for word in words] == SENTENCE.split()
    assert all(SENTENCE[word.start : word.end] == word.text for word in words)
    model, spelling = run[1], Spelling.of(retriever.tokenizer, SENTENCE)
    with torch.no_grad():
        states = states_of(model, bank, ids_of(retriever, SENTENCE), 4)[1 : 1 + len(spelling.ids)]
        replaced = torch.softmax(model.discriminate(states), dim=1)[:, 0]
        best = torch.softmax(model.correct(states), dim=1).max(dim=1)
    for word, pieces in zip(words, spelling.words(), strict=True):
        assert word.suspicion == pytest.approx(max(float(replaced[at]) for at in pieces), abs=1e-5)
        assert word.certainty == pytest.approx(float(torch.stack([best.values[at] for at in pieces]).prod()), rel=1e-3)
        fixed = retriever.tokenizer.convert_ids_to_tokens([int(best.indices[at]) for at in pieces])
        assert word.suggestion == "".join(piece.removeprefix("##") for piece in fixed)


def test_pieces_to_words_by_hand():
    piece = {"replaced": False, "suspicion": 0.25, "correction": "a", "certainty": 0.5}
    second = {"text": "##board", "replaced": True, "suspicion": 0.75, "correction": "##b", "certainty": 0.5}
    joined = join_pieces([piece | {"text": "a"}, piece | {"text": "skate"}, second])
    assert [word["text"] for word in joined] == ["a", "skateboard"]
    assert joined[1] == {"text": "skateboard", "replaced": True, "suspicion": 0.75, "correction": "ab", "certainty": 0.25}
    assert words_of(["##x", "a", "##b", "##c", "."]) == [[0], [1, 2, 3], [4]]


def spelling(text: str, pieces: str) -> Spelling:
    """By hand: pieces stand in the text in order."""
    found, end = [], 0
    for piece in pieces.split():
        word = piece.removeprefix("##")
        a = text.lower().index(word, end)
        end = a + len(word)
        found.append((a, end))
    return Spelling(text, tuple(range(len(found))), tuple(pieces.split()), tuple(found))


@pytest.mark.parametrize(
    ("new", "text"),
    [
        ("a man rides a skate ##board .", "A man rides a skateboard."),
        ("the man rides a skate ##board .", "The man rides a skateboard."),
        ("a man eats a skate ##board .", "A man eats a skateboard."),
        ("a man rides a skate dog .", "A man rides a skate dog."),
        ("a man rides a surf ##board .", "A man rides a surfboard."),
        ("a man rides a ##s ##board .", "A man rides asboard."),
    ],
)
def test_rewriting_keeps_what_is_not_replaced(new, text):
    old = spelling("A man rides a skateboard.", "a man rides a skate ##board .")
    assert old.rewritten(new.split()) == text


def test_spelling_of_ids_and_of_text(world):
    tokenizer = load_tokenizer(world / "tokenizer")
    found = Spelling.of(tokenizer, SENTENCE)
    assert Spelling.of_ids(tokenizer, found.ids, SENTENCE) == found
    other = Spelling.of_ids(tokenizer, found.ids, "something else")
    assert other.text == spell(list(found.pieces))[0] and other.ids == found.ids
    assert found.rewritten(found.pieces) == SENTENCE


def test_negatives_are_new_sentences_with_their_scores(retriever, bank):
    key, caption = bank.keys[1], bank.texts[int(bank.captions_of_image[1][0])]
    found = retriever.write_negatives(key, caption, 6, seed=3)
    assert 0 < len(found) <= 6 and found == retriever.write_negatives(key, caption, 6, seed=3)
    assert found != retriever.write_negatives(key, caption, 6, seed=4)
    assert found.caption == caption and found.score == pytest.approx(float(retriever.score(key, caption)), abs=1e-5)
    texts = [negative.text for negative in found]
    assert len(set(texts)) == len(texts) and not set(texts) & set(retriever.captions(key))
    assert [n.score for n in found] == sorted((n.score for n in found), reverse=True)
    torch.testing.assert_close(torch.tensor([n.score for n in found]), retriever.score(key, texts)[0], atol=1e-5, rtol=1e-4)
    assert found.written == len(found) + found.spare + sum(map(len, found.dropped.values())) == 400
    for negative in found:
        assert negative.changes and all(caption[c.start : c.end] == c.old != c.new for c in negative.changes)
        kinds = {change.kind for change in negative.changes} - {"other"}
        assert negative.kind == (kinds.pop() if len(kinds) == 1 else "several" if kinds else "other")


def test_rules_drop_what_they_say(retriever, bank):
    key, caption = bank.keys[1], bank.texts[int(bank.captions_of_image[1][0])]
    free = retriever.write_negatives(key, caption, 400)
    steps = sorted({round(n.score, 4) for n in free})
    middle = (steps[len(steps) // 2] + steps[len(steps) // 2 + 1]) / 2  # between two: scores differ by rounding from call to call
    rules = tagsds.Rules(max_score=middle, most_words=1)
    held = retriever.write_negatives(key, caption, 400, rules=rules)
    expected = {n.text for n in free if n.score <= middle and len(n.changes) == 1}
    assert {n.text for n in held} == expected and expected and held.dropped["score"] and held.dropped["words"]
    known = " ".join(retriever.captions(key)).lower().replace(",", " ").split()
    without = retriever.write_negatives(key, caption, 400, rules=tagsds.Rules(without=("true_of_image",)))
    assert not without.dropped["true_of_image"] and len(without) > len(free)
    back = {n.text for n in without} - {n.text for n in free}
    assert back and all(word in known for text in back for word in text.lower().replace(",", " ").split())


def test_regions_without_a_corpus(run, retriever, bank):
    alone = tagsds.load(run[0], device="cpu")
    torch.testing.assert_close(alone.score(regions_of(bank, 0), SENTENCE), retriever.score(bank.keys[0], SENTENCE))
    assert alone.proofread(regions_of(bank, 0), SENTENCE) == retriever.proofread(bank.keys[0], SENTENCE)
    assert len(alone.write_negatives(regions_of(bank, 0), SENTENCE, 2)) == 2
    with pytest.raises(tagsds.UserError, match="no corpus was loaded, so there is nothing to search"):
        alone.search(SENTENCE)
    with pytest.raises(tagsds.UserError, match="named by its key, and no corpus"):
        alone.score("7", SENTENCE)


@pytest.mark.parametrize("kind", ["vsrn", "scan", "bfan"])
def test_matchers_score_and_search(kind, world, bank, tmp_path):
    torch.manual_seed(4)
    tokenizer, width = load_tokenizer(world / "tokenizer"), bank.regions.values.shape[1]
    sizes = {"vocab_size": len(tokenizer), "region_dim": width, "word_size": 8, "embed_size": 12}
    model = MATCHERS[kind].model(MATCHERS[kind].config(**sizes)).eval()
    model.save_pretrained(tmp_path / "run" / "export")
    tokenizer.save_pretrained(tmp_path / "run" / "export")
    retriever = tagsds.load(tmp_path / "run", world, "cpu", split="dev")
    found = retriever.score(list(bank.keys), [SENTENCE, "a square"])
    texts = retriever.tokenizer([SENTENCE, "a square"])["input_ids"]
    with torch.no_grad():
        table = Ragged.from_rows([torch.tensor(row) for row in texts])
        expected = model.similarity(bank.image_table(torch.arange(bank.num_images)), table)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for _ in range(2):  # from encodings that are kept
        hits = retriever.search(SENTENCE, 12)
        assert [hit.score for hit in hits] == pytest.approx(found[:, 0].sort(descending=True).values.tolist(), abs=1e-5)
    captions = retriever.search(bank.keys[3], 2, among=[5, 8, 40])
    expected = retriever.score(bank.keys[3], [bank.texts[n] for n in (5, 8, 40)])[0].sort(descending=True).values[:2]
    assert [hit.score for hit in captions] == pytest.approx(expected.tolist(), abs=1e-5)
    for call in (retriever.proofread, retriever.write_negatives):
        with pytest.raises(tagsds.UserError, match="is a matcher, and only the pair encoder"):
            call(bank.keys[0], SENTENCE)


def test_what_a_user_is_told(run, retriever, world, bank, tmp_path):
    key = bank.keys[0]
    features, boxes = regions_of(bank, 0)
    cases = [
        (lambda: retriever.score("nowhere", SENTENCE), "image 'nowhere' is not in split 'dev'"),
        (lambda: retriever.score(key, " "), "a sentence is empty"),
        (lambda: retriever.score(key, "red " * 60), "max_position_embeddings is 40; shorten it"),
        (lambda: retriever.score([(features[:, :3], boxes)], SENTENCE), "features of an image have shape"),
        (lambda: retriever.score([(features, boxes[:1])], SENTENCE), "boxes for|1 boxes"),
        (lambda: retriever.score([(features, boxes * 90)], SENTENCE), "lies outside 0..1"),
        (lambda: retriever.score([(features * float("nan"), boxes)], SENTENCE), "hold NaN"),
        (lambda: retriever.score([3], SENTENCE), "an image is a key, a picture or Regions"),
        (lambda: retriever.score(key, [3]), "a sentence is a string, not int"),
        (lambda: retriever.search(SENTENCE, 0), "k is 0"),
        (lambda: retriever.search(SENTENCE, 1, among=[99]), "names number 99 where split 'dev'"),
        (lambda: retriever.write_negatives(key, SENTENCE, 0), "n is 0"),
        (lambda: tagsds.load(tmp_path / "none"), "none does not exist"),
        (lambda: tagsds.load(run[0], world, split="dve"), "did you mean 'dev'"),
    ]
    for call, sentence in cases:
        with pytest.raises(tagsds.UserError, match=sentence):
            call()


def test_heads_that_no_stage_has_trained(world, bank, tmp_path):
    save_run(tmp_path / "run", world, ["itm", "rank"])
    retriever = tagsds.load(tmp_path / "run", world, "cpu", split="dev")
    with pytest.raises(tagsds.UserError, match=r"no trained discrimination head \(trained_heads: itm, rank\)"):
        retriever.proofread(bank.keys[0], SENTENCE)
    with pytest.raises(tagsds.UserError, match="no trained masked-word head"):
        retriever.write_negatives(bank.keys[0], SENTENCE)
    save_run(tmp_path / "disc", world, ["rank", "discriminate"])
    words = tagsds.load(tmp_path / "disc", world, "cpu", split="dev").proofread(bank.keys[0], SENTENCE)
    assert all(word.suggestion is None and word.certainty is None for word in words)
