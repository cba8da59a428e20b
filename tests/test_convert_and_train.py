"""A published checkpoint goes in, is fine-tuned and evaluated, and comes out again, by the commands a user types."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from tagsds.formats.manifest import read_manifest
from tagsds.models.card import read_card
from tagsds.models.load import load_model
from tagsds.models.published.files import write_published
from tests.launch import ROOT, TINY, train
from tests.models.published_uniter import state_dict, without


def call(module, *arguments):
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_published_encoder_is_fine_tuned_evaluated_and_written_back(world, tmp_path):
    manifest = read_manifest(world)
    sizes = dict(vocab=manifest.vocab_size, width=32, inner=64, positions=64, region_dim=manifest.feature_dim)
    published = state_dict(std=0.1, classes=manifest.num_classes, **sizes)
    published = without(published, "rank_output", "disc_output", "correction_output")
    source, folder, run, back = (tmp_path / name for name in ("uniter.pt", "uniter", "run", "back.pt"))
    write_published(source, published)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    said = call(
        "tagsds.models.convert", source, "--out", folder, "--tokenizer", world / "tokenizer", "--config", tmp_path / "config.json"
    )
    assert "heads begun: rank <- itm" in said

    overrides = [*TINY, f"init={folder}", "optimiser.steps=2", "loss.syn=0.5", "loss.mlm=0.1"]
    output = train(world, run, "ds_configs/zero1.json", overrides)
    assert "heads begun: rank <- itm" in output
    card = read_card(run / "export")
    assert card is not None and card.recipe["steps"] == "2 of 2" and card.recipe["started from"] == str(folder)
    assert card.data["packed from"] == "world" and card.data["split"] == "train: 60 images, 300 captions"

    call("tagsds.evaluate", "--checkpoint", run, "--data", world, "--split", "test")
    card = read_card(run / "export")
    results = json.loads((run / "results-test.json").read_text())
    assert card.recalls[0]["dataset"] == "world test, 20 images"
    assert card.recalls[0]["figures"]["rsum"] == results["recalls"]["rsum"]
    assert "| world test, 20 images |" in (run / "export" / "README.md").read_text()

    call("tagsds.models.convert", run, "--out", back)
    state = torch.load(back, weights_only=True)
    assert set(state) == {*published, "rank_output.weight", "rank_output.bias"}
    trained = load_model(run / "export")
    assert torch.equal(state["rank_output.weight"], trained.rank.weight)
    assert torch.equal(state["uniter.encoder.layer.1.attention.self.key.weight"], trained.layers[1].qkv.weight[32:64])
    assert not torch.equal(state["uniter.pooler.dense.weight"], published["uniter.pooler.dense.weight"])  # two steps moved it
