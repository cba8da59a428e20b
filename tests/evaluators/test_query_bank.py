"""Hubs taken down by a bank of training images and captions: the arithmetic by hand, scores across banks, tagsds-evaluate."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.shards import load_bank
from tagsds.evaluators.metrics import recalls
from tagsds.evaluators.query_bank import QueryBank, QueryBankSettings, crossed, soft_maximum
from tagsds.formats.results import read_results
from tagsds.report import main as report
from tagsds.scoring.registry import scorer_of
from tests.launch import ROOT, run_two
from tests.programs import refusal
from tests.small_world import caption_ids, score_of
from tests.trained import save_run


def test_the_soft_maximum_by_hand():
    scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert soft_maximum(scores, 2.0).tolist() == pytest.approx([2 * math.log((math.exp(0.5) + math.exp(1.5)) / 2), 2.0])
    assert soft_maximum(scores, 0.01)[0] == pytest.approx(3.0, abs=0.01)
    assert soft_maximum(scores, 1e4)[0] == pytest.approx(2.0, abs=1e-3)
    assert soft_maximum(scores, 0.0).tolist() == [2.0, 2.0]


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hubs") / "run"
    return folder, save_run(folder, world)


def test_scores_across_banks_are_those_of_each_pair(world, model):
    dev, train = load_bank(world, "dev")[0], load_bank(world, "train", 3)[0]
    images, captions = torch.tensor([5, 0]), torch.tensor([1, 7, 4])
    found = crossed(scorer_of(model[1]), dev, images, train, captions)
    for n, image in enumerate(images.tolist()):
        for m, caption in enumerate(captions.tolist()):
            expected = score_of(model[1], dev, caption_ids(train, caption), image)
            assert float(found[n, m]) == pytest.approx(float(expected), abs=1e-4)
    assert crossed(scorer_of(model[1]), dev, images[:0], train, captions).shape == (0, 3)


def test_the_command_and_the_report(world, model, tmp_path, capsys):
    asked = ["--checkpoint", model[0], "--data", world, "--split", "dev", "--query-bank", 4, "--output"]
    program.main([*map(str, asked), str(tmp_path / "one.json")])
    assert "hubs taken down by 20 captions and 4 images" in capsys.readouterr().out
    results = read_results(tmp_path / "one.json")
    dev, train = load_bank(world, "dev")[0], load_bank(world, "train", 4)[0]
    captions = torch.arange(dev.num_captions)
    scorer = scorer_of(model[1])
    matrix = scorer.matrix(dev, torch.arange(dev.num_images), captions, progress=False)
    of_images, of_captions = (
        torch.stack([0.5 * scores.std() * torch.log(torch.exp(row / scores.std()).mean()) for row in scores])
        for scores in (
            crossed(scorer, dev, torch.arange(dev.num_images), train, torch.arange(20)).double(),
            crossed(scorer, train, torch.arange(4), dev, captions).double().T,
        )
    )
    both = (matrix - of_images[:, None] - of_captions).float()
    found = results["query_bank"]
    expected = recalls(both, dev.image_of_caption).as_dict()
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    # what a query has of it moves no rank of its own
    images_alone, captions_alone = (
        recalls((matrix - part).float(), dev.image_of_caption) for part in (of_images[:, None], of_captions)
    )
    assert found["image_r1"] == pytest.approx(images_alone.as_dict()["image_r1"])
    assert found["text_r1"] == pytest.approx(captions_alone.as_dict()["text_r1"])
    run_two(ROOT / "tagsds/evaluate.py", *asked, tmp_path / "two.json")
    assert json.loads((tmp_path / "two.json").read_text())["query_bank"] == results["query_bank"]
    (tmp_path / "one.json").rename(model[0] / "results-dev.json")
    report([str(model[0]), "--output", str(tmp_path / "report.html")])
    assert "hubs taken down by a query bank" in (tmp_path / "report.html").read_text()


def test_what_a_user_is_told(world, model, capsys):
    base = ["--checkpoint", model[0], "--data", world]
    assert "--query-bank is 1; give a whole number of at least 2" in refusal(program.main, capsys, *base, "--query-bank", 1)
    edits = ["--pairs", world / "edits" / "dev", "--no-retrieval"]
    said = refusal(program.main, capsys, *base, "--split", "dev", *edits, "--query-bank")
    assert "'query-bank' ranks images and captions; omit --no-retrieval" in said
    said = refusal(program.main, capsys, *base, "--split", "train", "--query-bank")
    assert "must be of another split than 'train', whose images would be their own queries" in said
    assert QueryBank.settings_of(program.parse_arguments([*map(str, base)])) == {} and QueryBankSettings().split == "train"
