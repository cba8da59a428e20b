"""The first of each query ordered anew by likelihood: the arithmetic by hand, and a run of tagsds-evaluate against one masking, one
forward."""

from __future__ import annotations

import json

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.evaluators import Subject, rescore
from tagsds.evaluators.metrics import ranks, recalls
from tagsds.evaluators.rescore import rescored
from tagsds.evaluators.shortlist import shortlist
from tagsds.formats.results import read_results
from tagsds.report import main as report
from tagsds.scoring.likelihood import pseudo_likelihood
from tagsds.scoring.registry import scorer_of
from tests.evaluators.test_likelihood import one_by_one
from tests.launch import ROOT, run_two
from tests.programs import refusal
from tests.small_world import caption_ids
from tests.trained import save_run

SCORES = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.5, 2.8], [1.0, 2.0, 2.9]])  # each image has the caption of its number
SEEN = torch.tensor([[-5.0, -9.0, -9.0], [-9.0, -9.0, -5.0], [-9.0, -9.0, -8.0]])
ALONE = torch.tensor([-6.0, -6.0, -9.0])


def by_hand(first: int, weight: float) -> dict[str, float]:
    lists = shortlist(SCORES, first)
    listed = lists.pairs()
    return rescored(SCORES, lists, listed, SEEN.flatten()[listed], ALONE, weight, torch.tensor([0, 1, 2]))


def test_the_order_by_hand():
    plain = by_hand(2, 0.0)
    assert (plain["text_r1"], plain["image_r1"]) == pytest.approx((200 / 3, 100.0))  # image 1: 2.8 above its own 2.5
    found = by_hand(2, 1.0)
    # captions of image 1: 2.5 - 9 + 6 = -0.5 and 2.8 - 5 + 9 = 6.8; of image 2: 2 - 9 + 6 = -1 and 2.9 - 8 + 9 = 3.9
    assert found["text_r1"] == pytest.approx(200 / 3)
    # images of caption 2: 2.8 - 5 = -2.2 above its own 2.9 - 8 = -5.1; of caption 1: 2.5 - 9 above 2.0 - 9
    assert found["image_r1"] == pytest.approx(200 / 3)


def test_what_is_not_listed_stays_behind():
    first = by_hand(1, 100.0)
    plain = ranks(SCORES, torch.tensor([0, 1, 2]))
    at_one = [100.0 * int((side == 0).sum()) / 3 for side in plain]  # one listed item cannot change places
    assert [first["text_r1"], first["image_r1"]] == pytest.approx(at_one)


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rescore") / "run"
    return folder, save_run(folder, world)


def test_the_command_and_the_report(world, model, tmp_path, capsys):
    asked = ["--checkpoint", model[0], "--data", world, "--split", "dev", "--first", 6, "--rescore", 3, "--output"]
    program.main([*map(str, asked), str(tmp_path / "one.json")])
    assert "first 3, by likelihood too" in capsys.readouterr().out
    found = read_results(tmp_path / "one.json")["rescored"]
    bank, vocab = load_bank(world, "dev", 6)[0], Vocabulary.of(load_tokenizer(world / "tokenizer"))
    scores = scorer_of(model[1]).matrix(bank, torch.arange(6), torch.arange(bank.num_captions), progress=False)
    alone = pseudo_likelihood(model[1], bank.text_table(torch.arange(bank.num_captions)), vocab)
    of_text, of_image = scores.clone(), scores.clone()
    judged = 0
    for image in range(6):
        for caption in range(bank.num_captions):
            of_images = caption in scores[image].topk(3).indices.tolist()
            of_captions = image in scores[:, caption].topk(3).indices.tolist()
            judged += of_images or of_captions
            if of_images or of_captions:
                seen = one_by_one(model[1], bank, image, caption_ids(bank, caption), vocab)
            if of_images:  # 1000: above all that is not listed
                of_text[image, caption] += 1000 + 0.1 * (seen - float(alone[caption]))
            if of_captions:
                of_image[image, caption] += 1000 + 0.1 * seen
    text, image = ranks(of_text, bank.image_of_caption)[0], ranks(of_image, bank.image_of_caption)[1]
    for name, side in (("text", text), ("image", image)):
        for k in (1, 5, 10):
            assert found[f"{name}_r{k}"] == pytest.approx(100 * float((side < k).float().mean()))
    assert (found["first"], found["weight"], found["pairs_judged"]) == (3, 0.1, judged)
    run_two(ROOT / "tagsds/evaluate.py", *asked, tmp_path / "two.json")
    both = json.loads((tmp_path / "two.json").read_text())["rescored"]
    assert {**both, "seconds": 0} == {**found, "seconds": 0}
    (tmp_path / "one.json").rename(model[0] / "results-dev.json")
    report([str(model[0]), "--output", str(tmp_path / "report.html")])
    assert "the first of each query ordered anew by likelihood too" in (tmp_path / "report.html").read_text()


def test_beside_a_query_bank_it_starts_without_hubs_too(world, model, tmp_path, monkeypatch):
    matrices = {}
    true = rescore.rescored

    def spy(scores, lists, listed, *others):
        matrices[len(matrices)] = scores, lists, listed
        return true(scores, lists, listed, *others)

    monkeypatch.setattr(rescore, "rescored", spy)
    asked = ["--checkpoint", model[0], "--data", world, "--split", "dev", "--first", 6, "--rescore", 3, "--query-bank", 4]
    program.main([*map(str, asked), "--output", str(tmp_path / "one.json")])
    results = read_results(tmp_path / "one.json")
    (plain, lists, listed), (corrected, others, same) = matrices.values()
    bias = plain - corrected  # of an image and of a caption: a sum of both
    assert torch.allclose(bias, bias[:, :1] + bias[:1] - bias[0, 0], atol=1e-4) and min(bias[:, 0].std(), bias[0].std()) > 0
    assert recalls(corrected, torch.arange(30) // 5).rsum == pytest.approx(results["query_bank"]["rsum"])
    assert torch.equal(listed, same) and set(listed.tolist()) == {*lists.pairs().tolist(), *others.pairs().tolist()}
    run_two(ROOT / "tagsds/evaluate.py", *asked, "--output", tmp_path / "two.json")
    again = json.loads((tmp_path / "two.json").read_text())["rescored_query_bank"]
    assert {**again, "seconds": 0} == {**results["rescored_query_bank"], "seconds": 0}


def test_a_rank_without_a_pair_judges_nothing(world, model):
    bank = load_bank(world, "dev", 2)[0]
    subject = Subject.of(model[1], bank, tokenizer=load_tokenizer(world / "tokenizer"))
    assert rescore.judge(subject, torch.arange(0)).shape == rescore.judge(subject, torch.arange(0), by_words=True).shape == (0,)


def test_what_a_user_is_told(world, model, tmp_path, capsys):
    base = ["--data", world, "--split", "dev", "--rescore"]
    assert "--rescore is 0; give a whole number" in refusal(program.main, capsys, "--checkpoint", model[0], *base, 0)
    save_run(tmp_path / "plain", world, ["itm", "rank"])
    said = refusal(program.main, capsys, "--checkpoint", tmp_path / "plain", *base)
    assert "has no trained masked-word head for --rescore; give a run that was trained with mlm" in said
