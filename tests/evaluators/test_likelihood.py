"""Edited captions by the encoder's own masked-word head with the picture before it: figures worked by hand, and a run of
tagsds-evaluate on tiny models against one masking, one forward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.evaluators.likelihood import Likelihood, compare
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.formats.results import read_results
from tagsds.models.uniter import Layout
from tagsds.report import main as report
from tests.launch import ROOT, run_two
from tests.programs import refusal
from tests.trained import save_run


def test_figures_by_hand():
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0], [1.0, 1.0]])  # right, wrong, right, a tie is wrong
    written = torch.tensor([[-2.0, -1.0], [-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0]])  # wrong, then right
    blind = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-2.0, -1.0], [-2.0, -1.0]])  # right, right, wrong, wrong
    found = compare(scores, written, 1.0, blind)
    # differences 1, -1, 2, 0 with a root mean square of 1.22, and -1, 1, 1, 1 with 1: sums of -0.18, 0.18, 2.63, 1
    assert found == {
        "model": 50.0, "likelihood": 75.0, "both": 75.0, "pairs": 4, "balanced": (50 + 100) / 2, "both_balanced": (50 + 100) / 2,
    }  # fmt: skip
    assert Likelihood.cells_of(found) == ["50.0", "75.0", "75.0", "75.0", "75.0"]
    assert compare(scores, written, 0.5)["both"] == 75.0  # 0.32, -0.32, 2.13, 0.5
    assert Likelihood.cells_of(compare(scores, written, 0.5)) == ["50.0", "75.0", "75.0", "–", "–"]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood")
    save_run(folder / "words", world, ["itm", "mlm"], seed=5)
    return folder, save_run(folder / "model", world)


def one_by_one(model, bank, image, ids, vocab):
    """Each piece behind [MASK] in a forward of its own."""
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[place] = vocab.mask
        pairs = Pairs(Ragged.from_rows([masked]), bank.image_table(torch.tensor([image])), torch.tensor([0]), torch.tensor([0]))
        with torch.no_grad():
            logits = model.mlm(model(pairs)[Layout.of(pairs).starts[0] + place])
        total += float(torch.log_softmax(logits, dim=-1)[ids[place]])
    return total


def test_the_command_and_the_report(world, runs, capsys):
    folder, model = runs
    edits = sorted((world / "edits" / "dev").glob("*.json"))[:2]
    asked = ["--checkpoint", str(folder / "model"), "--data", str(world), "--split", "dev", "--no-retrieval"]
    asked += ["--pairs", *map(str, edits), "--likelihood"]
    program.main([*asked, "--blind", str(folder / "words")])
    assert "with the likelihood, balanced" in capsys.readouterr().out
    results = read_results(folder / "model" / "results-dev.json")
    tokenizer, bank = load_tokenizer(world / "tokenizer"), load_bank(world, "dev")[0]
    for kind in read_pairs(edits, bank.keys):
        right = doubtful = 0
        for pair in kind.pairs:
            rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in (pair.caption, pair.negative)]
            true, false = (one_by_one(model, bank, pair.image, row, Vocabulary.of(tokenizer)) for row in rows)
            right, doubtful = right + (true > false), doubtful + (abs(true - false) < 1e-4)
        found = results["likelihood"][kind.kind]
        assert abs(found["likelihood"] * len(kind.pairs) / 100 - right) <= doubtful + 1e-6 and doubtful <= 1
        assert found["pairs"] == len(kind.pairs) and found["model"] == results["edits"][kind.kind]["accuracy"]
        assert 0 <= found["both_balanced"] <= 100
    report([str(folder / "model"), "--output", str(folder / "report.html")])
    assert "Edited captions, by what the encoder would write" in (folder / "report.html").read_text()
    program.main(asked)
    alone = read_results(folder / "model" / "results-dev.json")["likelihood"]
    assert not any("balanced" in found for found in alone.values())
    program.main([*asked, str(folder / "words")])
    named = read_results(folder / "model" / "results-dev.json")
    assert named["provenance"]["likelihood"]["checkpoint"] == str(folder / "words" / "export")
    program.main(["--checkpoint", str(folder / "words"), *asked[2:]])
    itself = read_results(folder / "words" / "results-dev.json")["likelihood"]
    assert {k: e["likelihood"] for k, e in named["likelihood"].items()} == {k: e["likelihood"] for k, e in itself.items()}
    assert all(named["likelihood"][kind]["model"] == found["model"] for kind, found in alone.items())
    assert all(found["both"] == results["likelihood"][kind]["both"] for kind, found in alone.items())


def test_the_picture_is_seen(world, runs):
    """The same words have another likelihood with another picture."""
    bank, tokenizer = load_bank(world, "dev")[0], load_tokenizer(world / "tokenizer")
    ids = torch.tensor(tokenizer("a red square above a circle")["input_ids"])
    first, second = (one_by_one(runs[1], bank, image, ids, Vocabulary.of(tokenizer)) for image in (0, 1))
    assert abs(first - second) > 1e-3


def test_the_folder_one_stands_in_is_a_run_and_no_value_the_encoder_itself(world):
    asked = ["--checkpoint", "run", "--data", str(world), "--pairs", "edits", "--likelihood"]
    assert Likelihood.settings_of(program.parse_arguments([*asked, "."])) == {"run": Path()}
    assert Likelihood.settings_of(program.parse_arguments(asked)) == {}


def test_what_a_user_is_told(world, runs, tmp_path, capsys):
    base = ["--checkpoint", runs[0] / "model", "--data", world, "--split", "dev"]
    assert "--likelihood judges edited captions" in refusal(program.main, capsys, *base, "--likelihood")
    save_run(tmp_path / "plain", world, ["itm", "rank"])
    edits = ["--pairs", sorted((world / "edits" / "dev").glob("*.json"))[0]]
    said = refusal(program.main, capsys, "--checkpoint", tmp_path / "plain", *base[2:], *edits, "--likelihood")
    assert "has no trained masked-word head for --likelihood; give a run that was trained with mlm" in said
    said = refusal(program.main, capsys, *base, *edits, "--likelihood", tmp_path / "plain")
    assert f"--likelihood {tmp_path / 'plain'} has no trained masked-word head; give a run that was trained with mlm" in said


def test_two_processes_give_the_same_figures_though_one_has_no_pair(world, runs, tmp_path):
    kind = json.loads(sorted((world / "edits" / "dev").glob("*.json"))[0].read_text())
    (tmp_path / "one.json").write_text(json.dumps({"0": kind["0"]}))
    asked = ["--checkpoint", runs[0] / "model", "--data", world, "--split", "dev", "--no-retrieval"]
    asked += ["--pairs", tmp_path / "one.json", "--likelihood", "--output"]
    program.main([*map(str, asked), str(tmp_path / "alone.json")])
    run_two(ROOT / "tagsds/evaluate.py", *asked, tmp_path / "both.json")
    alone, both = (read_results(tmp_path / name) for name in ("alone.json", "both.json"))
    assert alone["likelihood"] == both["likelihood"] and both["provenance"]["ranks"] == 2
