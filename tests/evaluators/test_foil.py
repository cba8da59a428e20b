"""Proofreading: files in FOIL-COCO's layout, figures worked by hand, and a run of tagsds-evaluate on a tiny model."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.data.words import Spelling
from tagsds.errors import UserError
from tagsds.evaluators.foil_file import of_pair, read_checked
from tagsds.evaluators.proofread import Marks, by_chance, figures_of, judged, mends, threshold
from tagsds.formats.results import read_results
from tagsds.models.matchers import MATCHERS
from tagsds.report import main as report
from tagsds.scoring.likelihood import hidden_words, pseudo_likelihood
from tests.small_world import one_pair, score_of
from tests.trained import save_run

KEYS = ["COCO_val2014_000000000007", "COCO_val2014_000000000009"]


def foil_file(path, annotations, images=None):
    path.write_text(json.dumps({"info": {}, "annotations": annotations} | ({"images": images} if images else {})))
    return path


def annotation(caption: str, image=7, target="ORIG", foil="ORIG"):
    words = {"foil": foil != "ORIG", "target_word": target, "foil_word": foil}
    return {"id": 1, "foil_id": 2, "image_id": image, "caption": caption, **words}


# --- the layout ----------------------------------------------------------------------------------------------------


def test_the_published_layout(tmp_path):
    found = [
        annotation("A man rides a bicycle."),
        annotation("A man rides a Motorcycle.", target="bicycle", foil="motorcycle"),
        annotation("Two hot dogs on a plate", 9, "pizza", "hot dog"),
        annotation("a cat by a cat", 9, "dog", "cat"),
    ]
    (one,) = read_checked([foil_file(tmp_path / "foil.json", found)], KEYS, False)
    assert (one.name, one.skipped) == ("foil", 0) and [c.image for c in one.captions] == [0, 0, 1, 1]
    words = [[caption.text[a:b] for a, b in caption.wrong] for caption in one.captions]
    assert words == [[], ["Motorcycle"], ["hot dogs"], ["cat", "cat"]]
    assert [caption.should_be for caption in one.captions] == [None, "bicycle", "pizza", None]


def test_images_are_found_by_file_name_or_number(tmp_path):
    images = [{"id": 1, "file_name": "COCO_val2014_000000000009.jpg"}]
    path = foil_file(tmp_path / "foil.json", [annotation("x", 1), annotation("y", 7)], images)
    (one,) = read_checked([path], KEYS, False)
    assert [caption.image for caption in one.captions] == [1, 0]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([annotation("a cat", target="dog", foil="bird")], "annotation 0: its foil_word 'bird' is not in its caption"),
        ([annotation("a cat") | {"foil": True, "foil_word": None}], "is a foil without target_word and foil_word"),
        ([annotation("a cat") | {"foil": 1}], r"annotations\[0\].foil is 1, not true or false"),
        ([annotation("a cat", 5), annotation("a cat")], r"image '5' is not in the split \(so for 1 of 2 captions\)"),
        ([], "no caption names an image of the split"),
    ],
)
def test_bad_files(tmp_path, entries, sentence):
    with pytest.raises(UserError, match=sentence):
        read_checked([foil_file(tmp_path / "bad.json", entries)], KEYS, False)


def test_pairs_differ_word_by_word():
    right, wrong = of_pair(3, "A dog on the red mat.", "A dog on the blue mat.")
    assert right.wrong == () and [wrong.text[a:b] for a, b in wrong.wrong] == ["blue"] and wrong.should_be == "red"
    _, swapped = of_pair(3, "a red cat and a blue dog", "a blue cat and a red dog")
    assert [swapped.text[a:b] for a, b in swapped.wrong] == ["blue", "red"] and swapped.should_be is None
    _, added = of_pair(3, "a dog", "a small dog")
    assert [added.text[a:b] for a, b in added.wrong] == ["small"] and added.should_be is None
    assert of_pair(3, "a small dog", "a dog") == [] == of_pair(3, "a dog", "A dog")


# --- figures by hand -----------------------------------------------------------------------------------------------


def marks(doubt, wrong="", fix=None, should_be=None):
    return Marks(doubt, fix or [None] * len(doubt), [str(n) in wrong for n in range(len(doubt))], should_be)


def test_the_threshold_leaves_one_in_twenty_above():
    assert threshold([n / 100 for n in range(40)]) == 0.37  # 0.38 and 0.39 are above
    assert threshold([0.3, 0.1]) == 0.3 and threshold([]) == math.inf
    assert threshold([0.5] * 40) == 0.5  # of equal ones none


def test_figures_worked_by_hand():
    right = [marks([0.1, 0.2]) for _ in range(18)] + [marks([0.1, 0.6]), marks([0.1, 0.9])]
    foils = [
        marks([0.7, 0.8], "1", ["a", "dog"], "Dog"),  # found, the right word, mended
        marks([0.7, 0.3], "1", ["a", "cat"], "dog"),  # found, the wrong word, not mended
        marks([0.1, 0.5], "1", ["a", "dog"], "dog"),  # not found, the right word, mended
        marks([0.1, 0.65, 0.2], "12"),  # found, the right word, nothing to compare with
    ]
    found = judged(right + foils)
    assert found["threshold"] == 0.6 and found["found"] == 75.0 and found["false_alarms"] == 5.0
    assert found["accuracy"] == pytest.approx(100 * (3 + 19) / 24)
    assert found["which"] == 75.0 and found["mended"] == pytest.approx(200 / 3)
    # right words: 40 of right captions, then 0.7, 0.7, 0.1, 0.1: 2 of 44 may lie above; 0.9, 0.7, 0.7 are the highest
    assert found["word_threshold"] == 0.7 and found["words_found"] == pytest.approx(100 * 1 / 5)
    chance = by_chance(right + foils)
    assert chance["which"] == pytest.approx(100 * (3 * 1 / 2 + 2 / 3) / 4)
    assert chance["accuracy"] == pytest.approx(100 * (0.05 * 4 + 0.95 * 20) / 24)


def test_a_method_that_says_nothing_finds_nothing():
    flat = judged([marks([0.5, 0.5]), marks([0.5, 0.5], "0", ["x", "y"], "z")])
    assert flat["found"] == flat["which"] == flat["words_found"] == flat["mended"] == 0.0
    only = figures_of([{"heads": marks([0.5]), "score": marks([0.5]), "surprise": marks([0.5])}], 2)
    assert (only["right"], only["wrong"], only["skipped"]) == (1, 0, 2) and only["methods"]["heads"]["which"] is None


def test_mending_compares_spellings():
    assert mends(marks([0, 0, 0], "12", ["a", "hot", "dog"], "Hot Dog"))
    assert not mends(marks([0, 0], "1", ["a", None], "dog"))


# --- the words alone -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tagsdc"
    return folder, save_run(folder, world)


def test_likelihood_without_regions_is_that_of_plain_text(run, world, monkeypatch):
    """Each piece hidden alone, against a literal forward of the text embedding and the layers; chunks change nothing."""
    bank, _ = load_bank(world, "dev")
    vocab, model = Vocabulary.of(load_tokenizer(world / "tokenizer")), run[1]
    rows = [bank.tokens[n].long() for n in (0, 7)]
    expected = []
    for ids in rows:
        total = 0.0
        for position in range(1, len(ids) - 1):
            masked = ids.clone()
            masked[position] = vocab.mask
            pair = one_pair(bank, masked, 0)
            pair.images.regions = Ragged(pair.images.regions.values[:0], torch.zeros(1, dtype=torch.int64))
            pair.images.geometry = pair.images.geometry[:0]
            with torch.no_grad():
                total += float(torch.log_softmax(model.mlm(model(pair))[position], dim=0)[ids[position]])
        expected.append(total)
    found = pseudo_likelihood(model, Ragged.from_rows(rows), vocab)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("tagsds.scoring.likelihood.TOKENS", 30)
    assert pseudo_likelihood(model, Ragged.from_rows(rows), vocab).tolist() == pytest.approx(expected, rel=1e-5)
    chances, best = hidden_words(model, Ragged.from_rows(rows), [(1, (2, 1)), (0, (3,))], vocab)
    assert chances.shape == best.shape == (3,)


# --- the command ---------------------------------------------------------------------------------------------------


def test_evaluate_proofreads_both_layouts(run, world, tmp_path, capsys):
    bank, _ = load_bank(world, "dev")
    words = [text.split() for text in bank.texts]
    entries = []
    for n in range(0, 40, 2):
        image = bank.keys[int(bank.image_of_caption[n])]
        entries.append(annotation(bank.texts[n], image))
        used = bank.texts[n].replace(",", " ").split()
        other = next(word for word in ("square", "circle", "star", "cross", "red") if word not in used)
        entries.append(annotation(" ".join([*words[n][:-1], other]), image, words[n][-1], other))
    path = foil_file(tmp_path / "foil.json", entries)
    edits = sorted((world / "edits" / "dev").glob("*.json"))[0]
    output = tmp_path / "results-dev.json"
    program.main(["--checkpoint", str(run[0]), "--data", str(world), "--split", "dev", "--no-retrieval", "--pairs", str(edits),
                  "--proofread", str(path), str(edits), "--output", str(output)])  # fmt: skip
    printed = capsys.readouterr().out
    assert "proofreading foil, %" in printed and "a random word" in printed
    found = read_results(output)["proofread"]
    assert (found["foil"]["right"], found["foil"]["wrong"]) == (20, 20) and set(found) == {"foil", edits.stem}
    assert found["foil"]["methods"]["heads"]["false_alarms"] <= 5.0
    spelled = [Spelling.of(load_tokenizer(world / "tokenizer"), entry["caption"]).words() for entry in entries[1::2]]
    expected = 100 * sum(1 / len(one) for one in spelled) / 20
    assert found["foil"]["methods"]["random"]["which"] == pytest.approx(expected)
    tokenizer, doubts = load_tokenizer(world / "tokenizer"), []
    with torch.no_grad():
        for n, entry in enumerate(entries):
            ids = torch.tensor(tokenizer(entry["caption"])["input_ids"])
            row = int(bank.image_of_caption[2 * (n // 2)])
            doubts.append(-float(score_of(run[1], bank, ids, row)))
    limit = sorted(doubts[::2], reverse=True)[1]  # one of twenty right captions may lie above
    low = found["foil"]["methods"]["score"]
    assert low["found"] == 100 * sum(doubt > limit for doubt in doubts[1::2]) / 20 and low["false_alarms"] == 5.0
    assert low["threshold"] == pytest.approx(limit, abs=1e-5) and low["which"] is low["words_found"] is low["mended"] is None
    report([str(tmp_path), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "Proofreading" in page and "most surprising word, words alone" in page


def test_what_a_user_is_told(world, tmp_path, capsys):
    def fails(run, *arguments):
        with pytest.raises(SystemExit) as ended:
            program.main(["--checkpoint", str(run), "--data", str(world), "--split", "dev", "--no-retrieval", *map(str, arguments)])
        assert ended.value.code == 2
        return capsys.readouterr().err

    edits = sorted((world / "edits" / "dev").glob("*.json"))[0]
    save_run(tmp_path / "plain", world, ["itm", "rank"])
    both = ["--proofread"]
    assert "no trained discrimination head" in fails(tmp_path / "plain", *both, edits)
    assert "--proofread " in fails(tmp_path / "plain", *both, tmp_path / "none.json")
    tokenizer = load_tokenizer(world / "tokenizer")
    width = load_bank(world, "dev")[0].regions.values.shape[1]
    kind = MATCHERS["vsrn"]
    model = kind.model(kind.config(vocab_size=len(tokenizer), region_dim=width, word_size=8, embed_size=12))
    model.save_pretrained(tmp_path / "vsrn" / "export")
    assert "needs the pair encoder's heads and this is a matcher" in fails(tmp_path / "vsrn", *both, edits)
