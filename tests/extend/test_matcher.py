"""A matcher from outside the package: trained, evaluated, mined with, saved and loaded, without a change in the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tagsds import evaluate, mine
from tagsds.config import load_config, save_config
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tagsds.models.card import kind_text
from tagsds.models.matchers import MATCHERS, register
from tagsds.objectives import MatchingObjective
from tagsds.prepare import build_model, different_settings
from tests.extend.mean_matcher import KIND
from tests.extend.mean_matcher.model import MeanMatcher

RECIPE = "objective: matching\nmatcher: {kind: mean, embed_size: 12, scale: 4.0}\nquintuplet: {kind: online}\n"


@pytest.fixture(autouse=True)
def registered():
    register("mean", KIND)
    yield
    del MATCHERS["mean"]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mean.yaml"
    path.write_text(RECIPE)
    return str(path)


def trained(world, recipe, steps: int, *overrides: str) -> tuple[MeanMatcher, list[dict[str, float]]]:
    config = load_config(recipe, list(overrides))
    bank, manifest = load_bank(world, "train")
    vocab = Vocabulary.of(load_tokenizer(world / "tokenizer"))
    model = build_model(config, manifest, vocab).train()
    objective = MatchingObjective(model, config, vocab, None)
    optimiser, rows = torch.optim.Adam(model.parameters(), 1e-2), []
    for step in range(steps):
        output = objective(bank, torch.arange(step % 3, 300, 19), Draw(1, step, 0))
        optimiser.zero_grad()
        output.total.backward()
        optimiser.step()
        rows.append({"total": float(output.total.detach()), **{name: float(term.detach()) for name, term in output.terms.items()}})
    return model, rows


def test_trained_saved_evaluated_and_mined_with(world, recipe, tmp_path):
    model, rows = trained(world, recipe, 12)
    assert isinstance(model, MeanMatcher) and rows[-1]["total"] < 0.8 * rows[0]["total"]
    export = tmp_path / "run" / "export"
    model.save_pretrained(export)
    load_tokenizer(world / "tokenizer").save_pretrained(export)
    again = AutoModel.from_pretrained(export)
    assert type(again) is MeanMatcher and again.config.scale == 4.0
    bank, _ = load_bank(world, "test")
    images, captions = bank.image_table(torch.arange(20)), bank.text_table(torch.arange(bank.num_captions))
    scores = model.eval().similarity(images, captions).detach()
    assert torch.equal(scores, again.eval().similarity(images, captions)) and float(scores.abs().max()) <= 4.0 + 1e-5

    at_test = ["--checkpoint", str(tmp_path / "run"), "--data", str(world), "--split", "test"]
    evaluate.main([*at_test, "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    order = scores.argsort(dim=0, descending=True)[0]  # the image ranked first for each caption
    assert found["recalls"]["image_r1"] == pytest.approx(100 * float((order == bank.image_of_caption).float().mean()), abs=1e-3)

    mine.main([*at_test, "--captions", "7", "--images", "3", "--output", str(tmp_path / "candidates")])
    candidates = np.load(tmp_path / "candidates" / "captions_of_image.npy")
    others = scores.masked_fill(bank.image_of_caption == torch.arange(20)[:, None], -torch.inf)
    assert np.array_equal(candidates, others.topk(7, dim=1).indices.numpy())


def test_a_loss_of_its_own_enters_the_total_with_its_weight(world, recipe):
    _, plain = trained(world, recipe, 1)
    _, more = trained(world, recipe, 1, "matcher.length_weight=0.5")
    assert "length" not in plain[0] and more[0]["length"] > 0
    assert more[0]["total"] == pytest.approx(plain[0]["total"] + 0.5 * more[0]["length"], rel=1e-6)


def test_its_settings_are_its_own(recipe, tmp_path):
    config = load_config(recipe, ["matcher.scale=2"])
    assert type(config.matcher) is KIND.settings and config.matcher.scale == 2.0
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")).matcher == config.matcher
    assert different_settings(tmp_path / "config.yaml", load_config(recipe)) == ["matcher.scale"]
    for override, sentence in {
        "matcher.scal=2": "unknown key 'matcher.scal': did you mean 'scale'?",
        "matcher.caption_hidden=8": "unknown key 'matcher.caption_hidden'",
        "matcher.scale=0": "matcher.scale=0.0 must be above zero",
        "matcher.kind=meen": "matcher.kind 'meen': did you mean 'mean'?",
    }.items():
        with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
            load_config(recipe, [override])
    assert kind_text("tagsds_mean") == "Mean of the regions against mean of the words."


def test_a_checkpoint_of_another_kind(world, recipe, tmp_path):
    manifest, vocab = read_manifest(world), Vocabulary.of(load_tokenizer(world / "tokenizer"))
    build_model(load_config(recipe), manifest, vocab).save_pretrained(tmp_path / "export")
    with pytest.raises(UserError, match="model_type 'tagsds_mean', the recipe vsrn-coco wants 'tagsds_vsrn'"):
        build_model(load_config("vsrn-coco", [f"init={tmp_path / 'export'}"]), manifest, vocab)
