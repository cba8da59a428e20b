"""Edited captions by the words alone: figures worked by hand, and a run of tagsds-evaluate on tiny models."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.evaluators.blind import Blind, compare
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.formats.results import read_results
from tagsds.models.matchers import MATCHERS
from tagsds.report import main as report
from tagsds.scoring.likelihood import pseudo_likelihood
from tests.launch import ROOT, run_two
from tests.programs import refusal
from tests.trained import save_run


def test_figures_by_hand():
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0], [1.0, 1.0]])  # right, wrong, right, a tie is wrong
    words = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [-2.0, -1.0]])  # right in the first three
    found = compare(scores, words, 1.0)
    # differences 1, -1, 2, 0 with a root mean square of sqrt(6 / 4) = 1.22, and 1, 1, 1, -1 with 1: sums of 1.82, 0.18, 2.63, -1
    balanced = pytest.approx((200 / 3 + 0) / 2)
    assert found == {"model": 50.0, "blind": 75.0, "above": -25.0, "balanced": balanced, "both": 75.0, "pairs": 4}
    assert Blind.cells_of(found) == ["50.0", "75.0", "-25.0", "33.3", "75.0"]


def test_the_sum_of_both_does_not_depend_on_the_unit_and_ties_stay_wrong():
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
    words = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [-2.0, -2.0]])
    by_weight = [compare(1000 * scores, words / 7, weight)["both"] for weight in (0.0, 0.5, 1.0)]
    assert by_weight == [50.0, 50.0, 75.0]  # the second pair: -0.82 + weight * 1.15
    assert compare(scores * 0, words * 0)["both"] == 0.0


def test_a_file_from_before_has_no_sum():
    found = compare(torch.randn(5, 2), torch.randn(5, 2))
    del found["both"]
    assert Blind.cells_of(found)[-1] == "–"


def test_a_model_that_guesses_by_the_words_stands_at_a_half():
    words = torch.randn(200, 2)
    found = compare(words, words)
    assert (found["above"], found["balanced"]) == (0.0, 50.0)


def test_where_the_words_tell_all_there_is_no_balance():
    found = compare(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    assert found["balanced"] is None and Blind.cells_of(found) == ["50.0", "100.0", "-50.0", "–", "50.0"]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blind")
    return folder, save_run(folder / "model", world), save_run(folder / "words", world, ["itm", "mlm"], seed=5)  # a pre-training


def test_the_command_and_the_report(world, runs, capsys, recwarn):
    folder, _, blind = runs
    edits = sorted((world / "edits" / "dev").glob("*.json"))[:2]
    program.main(["--checkpoint", str(folder / "model"), "--data", str(world), "--split", "dev", "--no-retrieval",
                  "--pairs", *map(str, edits), "--blind", str(folder / "words")])  # fmt: skip
    assert "balanced" in capsys.readouterr().out
    assert not any("head is not trained" in str(warning.message) for warning in recwarn)  # it ranks nothing
    results = read_results(folder / "model" / "results-dev.json")
    tokenizer = load_tokenizer(world / "tokenizer")
    for kind in read_pairs(edits, load_bank(world, "dev")[0].keys):
        right = 0
        for pair in kind.pairs:  # each sentence by itself, where the evaluator packs many
            rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in (pair.caption, pair.negative)]
            true, false = (float(pseudo_likelihood(blind, Ragged.from_rows([row]), Vocabulary.of(tokenizer))) for row in rows)
            right += true > false and not math.isclose(true, false, abs_tol=1e-5)
        found = results["blind"][kind.kind]
        assert found["blind"] == pytest.approx(100 * right / len(kind.pairs)) and found["pairs"] == len(kind.pairs)
        assert found["model"] == results["edits"][kind.kind]["accuracy"] and found["above"] == found["model"] - found["blind"]
    assert results["provenance"]["blind"]["head"] == "mlm"
    assert results["provenance"]["blind"]["checkpoint"] == str(folder / "words" / "export")
    report([str(folder / "model"), "--output", str(folder / "report.html")])
    assert "Edited captions, by the words alone" in (folder / "report.html").read_text()


def test_what_a_user_is_told(world, runs, tmp_path, capsys):
    base = ["--checkpoint", runs[0] / "model", "--data", world, "--split", "dev"]
    edits = ["--pairs", sorted((world / "edits" / "dev").glob("*.json"))[0]]
    assert "give files of them with --pairs" in refusal(program.main, capsys, *base, "--blind", runs[0] / "words")
    save_run(tmp_path / "plain", world, ["itm", "rank"])
    said = refusal(program.main, capsys, *base, *edits, "--blind", tmp_path / "plain")
    assert "has no trained masked-word head; give a run that was trained with mlm" in said
    width = load_bank(world, "dev")[0].regions.values.shape[1]
    kind = MATCHERS["vsrn"]
    words = len(load_tokenizer(world / "tokenizer"))
    matcher = kind.model(kind.config(vocab_size=words, region_dim=width, word_size=8, embed_size=12))
    matcher.save_pretrained(tmp_path / "vsrn" / "export")
    assert "has no masked-word head; give an encoder" in refusal(program.main, capsys, *base, *edits, "--blind", tmp_path / "vsrn")


def test_two_processes_give_the_same_figures_though_one_has_no_pair(world, runs, tmp_path):
    kind = json.loads(sorted((world / "edits" / "dev").glob("*.json"))[0].read_text())
    (tmp_path / "one.json").write_text(json.dumps({"0": kind["0"]}))
    asked = ["--checkpoint", runs[0] / "model", "--data", world, "--split", "dev", "--no-retrieval"]
    asked += ["--pairs", tmp_path / "one.json", "--blind", runs[0] / "words", "--output"]
    program.main([*map(str, asked), str(tmp_path / "alone.json")])
    run_two(ROOT / "tagsds/evaluate.py", *asked, tmp_path / "both.json")
    alone, both = (read_results(tmp_path / name) for name in ("alone.json", "both.json"))
    assert alone["blind"] == both["blind"] and alone["blind"]["one"]["pairs"] == 1 and both["provenance"]["ranks"] == 2
