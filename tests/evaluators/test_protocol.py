"""The registry, an evaluator from outside, the subject's one matrix, and what an evaluation must leave as it was."""

import json
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tagsds import evaluate as program
from tagsds import report
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.evaluators import (
    EVALUATORS,
    Evaluator,
    Plan,
    Subject,
    check_evaluators,
    make_evaluators,
    prepare_evaluators,
    run_evaluators,
)  # fmt: skip
from tagsds.evaluators.console import text_table
from tagsds.evaluators.recall import every
from tagsds.evaluators.section import Cell, Row, Section, Table
from tagsds.models.load import load_model
from tagsds.reporting.runs import read_runs
from tests import stand_in
from tests import tiny_corpus as tiny


@dataclass(frozen=True)
class GapSettings:
    """scale: what the gap is multiplied with."""

    scale: float = 1.0


class Gap(Evaluator):
    """Mean score of true pairs minus that of the others."""

    name = "gap"
    Settings = GapSettings

    def headline(self, subject):
        true = torch.zeros_like(subject.matrix, dtype=torch.bool)
        true[subject.image_of_caption, torch.arange(len(subject.captions))] = True
        gap = subject.matrix[true].double().mean() - subject.matrix[~true].double().mean()
        return {"gap": self.settings.scale * float(gap)}

    @classmethod
    def table(cls, results):
        return text_table(["gap"], [[f"{results['gap']:.6f}"]]) if "gap" in results else None

    @classmethod
    def section(cls, runs):
        rows = [Row(run, [Cell(f"{result['gap']:.6f}")], run) for run, result in every(runs) if "gap" in result]
        return Section("gap", [Table("Mean gap", "run", ["gap"], rows)] if rows else [], "Gap", "True pairs minus the others.")


@pytest.fixture
def gap(monkeypatch):
    monkeypatch.setitem(EVALUATORS, "gap", Gap)


@pytest.fixture(scope="module")
def bank(corpus):
    return load_bank(corpus, "test")[0]


def test_an_evaluator_from_outside(gap, corpus, tmp_path, capsys):
    """Registered, it is known to the command line, the results file, ensembles, the console and the report."""
    for number in (1, 2):
        stand_in.write_matcher(tmp_path / f"run-{number}" / "export", seed=number)
    options = ["--checkpoint", tmp_path / "run-1", "--data", corpus, "--evaluators", "gap", "--ensemble", tmp_path / "run-2"]
    program.main([*map(str, options)])
    results = json.loads((tmp_path / "run-1" / "results-test.json").read_text())
    bank, _ = load_bank(corpus, "test")
    captions = torch.cat([bank.captions_of_image[i][:5] for i in range(8)])
    gaps = []
    for number in (1, 2):
        model = load_model(tmp_path / f"run-{number}" / "export")
        with torch.no_grad():
            scores = model.similarity(bank.image_table(torch.arange(8)), bank.text_table(captions)).double()
        own = bank.image_of_caption[captions] == torch.arange(8)[:, None]
        gaps.append(float(scores[own].mean() - scores[~own].mean()))
    assert results["gap"] == pytest.approx(gaps[0], abs=1e-6) and "recalls" not in results
    assert results["ensemble"]["gap"] == pytest.approx(sum(gaps) / 2, abs=1e-6)  # a mean of scores: linear
    assert f"{results['gap']:.6f}" in capsys.readouterr().out
    page = report.render(read_runs([tmp_path / "run-1"]))
    assert "Mean gap" in page and f"{results['gap']:.6f}" in page and 'href="#gap"' in page


def test_settings_are_checked(gap):
    (evaluator,) = make_evaluators({"gap": {"scale": 2.0}})
    assert evaluator.settings.scale == 2.0
    with pytest.raises(UserError, match="no evaluator 'recal': did you mean 'recall'"):
        make_evaluators({"recal": None})
    with pytest.raises(UserError, match="'gap' has no setting 'scales': did you mean 'scale'"):
        make_evaluators({"gap": {"scales": 1}})
    with pytest.raises(UserError, match="'eccv' has no setting 'at': it has none"):
        make_evaluators({"eccv": {"at": [1]}})
    with pytest.raises(UserError, match="'edits' needs its setting 'files'"):
        make_evaluators({"edits": {}})
    with pytest.raises(UserError, match=r"recall\.at holds 0"):
        make_evaluators({"recall": {"at": [0]}})
    with pytest.raises(UserError, match="nothing to average"):
        make_evaluators({"ensemble": {"runs": []}})[0].check(None)


def test_the_order_is_the_registrys_and_they_know_each_other():
    made = make_evaluators({"ensemble": {"runs": ["a"]}, "recall": {"at": [20]}, "coco-folds": None})
    assert [evaluator.name for evaluator in made] == ["recall", "coco-folds", "ensemble"]
    assert made[0].settings.at == (1, 5, 10, 20) and [e.name for e in made[2].beside] == ["recall", "coco-folds"]


def test_the_matrix_is_scored_once(gap, bank):
    seen = []
    subject = Subject.of(stand_in.matcher(), bank)
    matrix = subject.pair_scorer.matrix
    subject.pair_scorer.matrix = lambda *args, **more: seen.append(args[1:3]) or matrix(*args, **more)
    evaluators = make_evaluators({"recall": None, "gap": None})
    first, second = run_evaluators(evaluators, subject), run_evaluators(evaluators, subject)
    assert len(seen) == 2 and [len(part) for part in seen[0]] == [8, 40]  # a run each
    assert first["pairs_scored"] == 320 and subject.scores == {} and subject.kept == {}  # nothing is kept in memory
    assert first["recalls"] == second["recalls"] and first["gap"] == second["gap"]


def test_a_validation_changes_no_later_step(corpus, bank, tmp_path):
    """Neither random state, nor the mode of any module, nor a weight or buffer; and it sees the weights as they now are."""
    stand_in.write_matcher(tmp_path / "other" / "export", seed=9)
    edits = tiny.write_edits(tmp_path / "object.json")
    model = stand_in.matcher().train()
    model.words.eval()  # frozen, say
    choice = {"recall": None, "edits": {"files": [edits]}, "ensemble": {"runs": [tmp_path / "other"]}}
    evaluators, (_, manifest) = make_evaluators(choice), load_bank(corpus, "test")
    subject = Subject.of(model, bank, tokenizer=tiny.tokenizer())

    def state():
        modes = [module.training for module in model.modules()]
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), modes

    before, weights = state(), {name: value.clone() for name, value in model.state_dict().items()}
    check_evaluators(evaluators, Plan(manifest, "test", type(model)))
    prepare_evaluators(evaluators, subject)
    results = run_evaluators(evaluators, subject)
    assert state() == before and all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.training and not model.words.training
    assert results["ensemble"]["members"] == ["the model", "other"] and results["edits"]["object"]["pairs"] == 8
    with torch.no_grad():
        model.words.weight.neg_()
    assert run_evaluators(evaluators, subject)["recalls"] != results["recalls"]


def test_options(corpus, tmp_path, capsys):
    stand_in.write_matcher(tmp_path / "run" / "export")
    base = ["--checkpoint", tmp_path / "run", "--data", corpus, "--output", tmp_path / "r.json"]

    def fails(*more) -> str:
        with pytest.raises(SystemExit):
            program.main([*map(str, [*base, *more])])
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "Traceback" not in message
        return message

    assert "no evaluator 'ecv': did you mean 'eccv'" in fails("--evaluators", "ecv")
    assert "--recall-at is 0" in fails("--recall-at", 0)
    assert "'edits' needs its setting 'files'" in fails("--evaluators", "edits")
    edits = tiny.write_edits(tmp_path / "object.json")
    assert "'recall' ranks images" in fails("--evaluators", "recall", "--pairs", edits, "--no-retrieval")
    program.main([*map(str, [*base, "--recall-at", 3, 1, 40])])
    results, printed = json.loads((tmp_path / "r.json").read_text()), capsys.readouterr().out
    assert results["recalls"]["text_r40"] == 100 and 0 <= results["recalls"]["image_r3"] <= results["recalls"]["image_r5"]
    assert printed.splitlines()[1].split()[2:9] == ["R@1", "R@3", "R@5", "R@10", "R@40", "R@1", "R@3"]
    program.main([*map(str, [*base[:4], "--recall-at", 3])])
    assert "<th>R@3</th>" in report.render(read_runs([tmp_path / "run"]))


def test_only_named_evaluators_run(corpus, tmp_path):
    stand_in.write_matcher(tmp_path / "run" / "export")
    edits = tiny.write_edits(tmp_path / "object.json")
    options = ["--checkpoint", tmp_path / "run", "--data", corpus, "--output", tmp_path / "r.json", "--evaluators", "edits"]
    program.main([*map(str, [*options, "--pairs", edits])])
    results = json.loads((tmp_path / "r.json").read_text())
    assert "recalls" not in results and results["edits"]["object"]["pairs"] == 8 and results["pairs_scored"] == 16
