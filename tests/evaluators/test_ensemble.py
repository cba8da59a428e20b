"""Averages worked by hand, and ensembles of matchers and of encoders end to end."""

import json
import math

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.evaluators.edits import tokenize_texts
from tagsds.evaluators.ensemble import average, member_names
from tagsds.evaluators.metrics import recalls
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.evaluators.protocol import first_captions
from tagsds.models.load import load_model
from tagsds.scoring.scorer import Scorer
from tests import stand_in
from tests import tiny_corpus as tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for number in (1, 2, 3):
        stand_in.write_matcher(root / f"matcher-{number}" / "export", seed=number)
    tiny.write_checkpoint(root / "tags" / "export")
    tiny.write_checkpoint(root / "tags-dc" / "export", initializer_range=0.3)
    return root


def call(corpus, output, *more):
    program.main([str(a) for a in ["--data", corpus, "--output", output, *more]])
    return json.loads(output.read_text())


def test_averages_by_hand():
    a, b, c = torch.tensor([[1.0, 0.25]]), torch.tensor([[0.0, -0.75]]), torch.tensor([[0.5, 2.0]])
    assert average([a, b, c], logits=False).tolist() == [[0.5, 0.5]]
    zero, three = torch.tensor([0.0]), torch.tensor([math.log(3)])  # sigmoids 1/2 and 3/4
    assert average([zero, three], logits=True).item() == pytest.approx(0.625, abs=1e-7)
    assert average([zero, three], logits=False).item() == pytest.approx(math.log(3) / 2, abs=1e-7)


def test_large_logits_do_not_fall_together():
    scores = torch.tensor([18.0, 19.0, 20.0, 30.0])
    assert torch.sigmoid(scores).unique().numel() < 4
    assert average([scores, scores], logits=True).diff().gt(0).all()


def test_an_ensemble_of_matchers(corpus, runs, tmp_path, capsys):
    edits = tiny.write_edits(tmp_path / "object.json")
    names = ["matcher-1", "matcher-2", "matcher-3"]
    paths = [runs / name for name in names]
    results = call(corpus, tmp_path / "r.json", "--checkpoint", paths[0], "--ensemble", *paths[1:], "--pairs", edits)
    printed = capsys.readouterr().out
    alone = call(corpus, tmp_path / "a.json", "--checkpoint", paths[0], "--pairs", edits)
    assert results["recalls"] == alone["recalls"] and results["edits"] == alone["edits"]
    assert results["pairs_scored"] == alone["pairs_scored"] and results["score_histogram"]["unit"] == "similarity"

    bank, _ = load_bank(corpus, "test")
    captions = first_captions(bank, 8, 5)
    own = bank.image_of_caption[captions]
    with torch.no_grad():
        matrices = [
            load_model(path / "export").similarity(bank.image_table(torch.arange(8)), bank.text_table(captions)) for path in paths
        ]
    ensemble = results["ensemble"]
    assert ensemble["members"] == names == list(ensemble["singles"])
    for name, matrix in zip(names, matrices, strict=True):
        assert ensemble["singles"][name] == pytest.approx(recalls(matrix, own).as_dict())
    assert ensemble["singles"]["matcher-1"] == results["recalls"]
    assert ensemble["recalls"] == pytest.approx(recalls(sum(m.double() for m in matrices) / 3, own).as_dict())
    assert results["provenance"]["head"] == "similarity" and len(results["provenance"]["ensemble"]) == 2
    assert "ensemble of 3" in printed and "single: matcher-2" in printed
    assert "true above edited caption, ensemble of 3" in printed

    first = bank.text_table(first_captions(bank, 8, 1))  # the true captions of the edits
    (kind,) = read_pairs([edits], bank.keys)
    words = tiny.tokenizer()
    false = tokenize_texts(words, [pair.negative for pair in kind.pairs], None)
    images = bank.image_table(torch.arange(8))
    with torch.no_grad():
        models = [load_model(path / "export") for path in paths]
        true_mean, false_mean = (sum(m.similarity(images, side).diagonal() for m in models) for side in (first, false))
    assert ensemble["edits"]["object"]["accuracy"] == pytest.approx(100 * float((true_mean > false_mean).double().mean()))


def test_an_ensemble_of_encoders_averages_sigmoids(corpus, runs, tmp_path):
    results = call(corpus, tmp_path / "r.json", "--checkpoint", runs / "tags", "--ensemble", runs / "tags-dc")
    bank, _ = load_bank(corpus, "test")
    captions = first_captions(bank, 8, 5)
    total = torch.zeros(8, 40, dtype=torch.float64)
    for name in ("tags", "tags-dc"):
        scores = Scorer(load_model(runs / name / "export")).matrix(bank, torch.arange(8), captions, progress=False)
        total += 1 / (1 + (-scores.double()).exp())
    assert results["ensemble"]["recalls"] == pytest.approx(recalls(total / 2, bank.image_of_caption[captions]).as_dict())
    assert results["ensemble"]["members"] == ["tags", "tags-dc"]


def test_only_the_edits_of_an_ensemble(corpus, runs, tmp_path, capsys):
    edits = tiny.write_edits(tmp_path / "object.json")
    paths = ["--checkpoint", runs / "matcher-1", "--ensemble", runs / "matcher-2"]
    results = call(corpus, tmp_path / "r.json", *paths, "--pairs", edits, "--no-retrieval")
    assert set(results["ensemble"]) == {"members", "edits"} and "recalls" not in results
    assert "ensemble of 2" in capsys.readouterr().out


def test_names_tell_models_apart(tmp_path):
    folders = [tmp_path / "a" / "vsrn" / "export", tmp_path / "b" / "vsrn" / "export", tmp_path / "b" / "bfan"]
    assert member_names(folders) == ["a/vsrn", "b/vsrn", "b/bfan"]
    assert member_names(folders[1:]) == ["vsrn", "bfan"]
    with pytest.raises(UserError, match="give each model once"):
        member_names([folders[0], folders[0]])


def test_bad_members(corpus, runs, tmp_path, capsys):
    def fails(*more) -> str:
        with pytest.raises(SystemExit):
            call(corpus, tmp_path / "r.json", *more)
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "Traceback" not in message
        return message

    ours = ["--checkpoint", runs / "matcher-1", "--ensemble"]
    assert "no common scale" in fails(*ours, runs / "tags")
    assert "no common scale" in fails("--checkpoint", runs / "tags", "--ensemble", runs / "tags-dc", runs / "matcher-1")
    assert "give each model once" in fails(*ours, runs / "matcher-1" / "export")
    assert "does not exist" in fails(*ours, runs / "nothing")
    stand_in.write_matcher(tmp_path / "wide" / "export", region_dim=5)
    assert "another width" in fails(*ours, tmp_path / "wide")
    stand_in.write_matcher(tmp_path / "more" / "export", vocab_size=25)
    (tmp_path / "more" / "export" / "tokenizer.json").unlink()
    assert "vocab_size 25" in fails(*ours, tmp_path / "more")
