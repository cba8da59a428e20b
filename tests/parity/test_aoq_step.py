"""Real runs of AOQ through DeepSpeed equal a literal float64 loop over pairs: every loss term of every step, and the weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tagsds.config import load_config
from tagsds.data.sampler import PositiveSampler
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw, seed_of
from tagsds.formats.candidates import Candidates
from tagsds.negatives.offline import draw_quintuplet
from tagsds.prepare import build_model
from tests import launch
from tests.candidates import candidates_of, write_candidates
from tests.parity import literal_aoq as literal

STEPS, PAIRS, FIRST, LAST = 4, 6, 1, 19
SMALL = ["matcher.embed_size=12", "matcher.word_size=8"]
VSRN = ["matcher.graph_layers=2", "matcher.caption_hidden=7", "matcher.caption_dropout=0", "matcher.caption_pieces=17"]
RUNS = {
    "vsrn-coco": ("vsrn-aoq-coco", VSRN),
    "vsrn-flickr": ("vsrn-aoq-flickr", VSRN),
    "scan-t2i": ("scan-aoq-coco", []),
    "bfan-equal": ("bfan-aoq-flickr", []),
}


@pytest.fixture(scope="module")
def candidates(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates")
    write_candidates(folder, world, "train", candidates_of(load_bank(world, "train")[0], LAST + 1, LAST // 5 + 1))
    return folder


def started(world: Path, folder: Path, recipe: str, settings: list[str]) -> None:
    """A checkpoint to start from, all weights off their first values: a graph layer's norm begins at 0, which hides the layer."""
    tokenizer = load_tokenizer(world / "tokenizer")
    _, manifest = load_bank(world, "train", first=1)
    model = build_model(load_config(recipe, settings), manifest, Vocabulary.of(tokenizer))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def steps_of(world: Path, found: Path, seed: int) -> list[literal.Step]:
    """What the run draws, as plain tensors: the positives of each step and their offline negatives."""
    bank, manifest = load_bank(world, "train")
    sampler = PositiveSampler(bank.num_captions, PAIRS, 1, seed_of(seed, "positives", 0))
    mined, out = Candidates.read(found, manifest, "train"), []
    for step in range(STEPS):
        draw = Draw(seed, step, 0)
        captions = sampler.at(draw)
        drawn = draw_quintuplet(mined, bank, captions, FIRST, LAST, draw.generator(bank.device, "offline"))
        own = bank.image_of_caption[captions]
        images = [[bank.regions[i].double() for i in rows.tolist()] for rows in (own, drawn.image_off, drawn.other_image)]
        texts = [[bank.tokens[c] for c in rows.tolist()] for rows in (captions, drawn.caption_off, drawn.other_caption)]
        out.append(literal.Step(images[0], texts[0], images[1], texts[1], images[2], texts[2], own.tolist()))
    return out


@pytest.mark.parametrize("name", RUNS)
def test_aoq_steps_equal_the_literal_loop(world: Path, candidates: Path, tmp_path: Path, name: str) -> None:
    recipe, settings = RUNS[name]
    settings = [*SMALL, *settings, f"offline.candidates={candidates}", f"offline.first={FIRST}", f"offline.last={LAST}"]
    settings += [f"batch.pairs={PAIRS}", f"optimiser.steps={STEPS}", "optimiser.lr=2e-3", "optimiser.decay_at=[2]", "log.every=1"]
    started(world, tmp_path / "init", recipe, settings)
    launch.train(world, tmp_path / "run", "ds_configs/zero0.json", [*settings, f"init={tmp_path / 'init'}"], recipe=recipe)

    kind = name.split("-")[0]
    first = load_file(tmp_path / "init" / "model.safetensors")
    statistics = {key for key in first if "running" in key or "tracked" in key}
    w = {key: value.double() for key, value in first.items() if key not in statistics}
    buffers = {key: value.double() for key, value in first.items() if key in statistics}
    config = SimpleNamespace(**json.loads((tmp_path / "init" / "config.json").read_text()))
    steps = steps_of(world, candidates, load_config(recipe, settings).seed)
    rows = literal.train(kind, w, buffers, config, steps, [2e-3, 2e-3, 2e-4, 2e-4])

    assert any(len(set(step.number)) < PAIRS for step in steps), "two captions of one image must meet in a batch"
    for measured, expected in zip(launch.rows(tmp_path / "run"), rows, strict=True):
        assert {key.removeprefix("loss/") for key in measured if key.startswith("loss/")} == set(expected)
        for term, value in expected.items():
            # a hinge is a difference of numbers near 1
            assert measured[f"loss/{term}"] == pytest.approx(value, rel=1e-5, abs=3e-6), term
    assert rows[0]["total"] != pytest.approx(rows[-1]["total"], rel=1e-3), "the loss must move for this to mean anything"
    assert all(any(row[term] > 0.01 for row in rows) for term in rows[0]), "every term must take part"

    trained = load_file(tmp_path / "run" / "export" / "model.safetensors")
    for key, value in w.items():
        if key.startswith("graph.") and key.endswith("out.bias"):
            continue  # BatchNorm takes it off again: its gradient is 0 but for rounding, of which Adam makes steps
        difference, moved = (trained[key] - value).abs().max(), (value - first[key]).abs().max()
        assert moved > 1e-3, key
        assert difference < 1e-5 * value.abs().max() and difference < 1e-3 * moved, (key, float(difference), float(moved))
    for key, value in buffers.items():
        if "running_var" in key or key == "image_norm.running_mean":
            torch.testing.assert_close(trained[key].double(), value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    if kind == "vsrn":
        assert int(trained["graph.0.norm.num_batches_tracked"]) == 3 * STEPS
