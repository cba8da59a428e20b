"""Runs, recipes, settings and checkpoints: valid folders, and how the commands read them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from tagsds import evaluate
from tagsds.config import RunConfig, load_config, save_config
from tagsds.engine.ds_config import offloads, read_ds_config, zero_stage
from tagsds.engine.resume import find
from tagsds.prepare import different_settings, pairs_of
from tagsds.ranks import World
from tagsds.report import write_report
from tests import tiny_corpus as tiny
from tests.engine.stored import saved

ROOT = Path(__file__).parents[2]


def make_run(folder: Path) -> None:
    """A run as training and tagsds-evaluate leave it."""
    folder.mkdir(parents=True)
    rows = [{"step": n, "time_s": float(n), "loss/total": 1.0 / n, "lr": 1e-4} for n in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_config(load_config("tagsdc-base-coco", ["seed=3"]), folder / "config.yaml")
    words = [{"text": "red", "replaced": True, "suspicion": 0.7, "correction": "blue"}]
    written = [{"score": 0.3, "text": "a red dog", "words": words}]
    negatives = [{"caption": "a dog", "image": "1", "score": 0.7, "words": words, "written": written}]
    examples = {"scores": {"true": [0.5, 0.7], "synthetic": [0.1, 0.2]}, "negatives": negatives}
    (folder / "examples.json").write_text(json.dumps(examples))
    tiny.write_shards(folder.parent / "pictures", images=4)
    tiny.write_checkpoint(folder.parent / "evaluated" / "export")
    evaluate.main([
        "--checkpoint", str(folder.parent / "evaluated"), "--data", str(folder.parent / "pictures"), "--output",
        str(folder / "results-test.json"), "--pairs", str(tiny.write_edits(folder.parent / "edits" / "object.json", images=4)),
    ])  # fmt: skip


def load_report(folder: Path) -> Any:
    page = folder.parent / "report.html"
    write_report([folder], page)
    text = page.read_text()
    assert text.rstrip().endswith("</html>")
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text)


def make_recipe(folder: Path) -> None:
    folder.mkdir(parents=True)
    encoder = ("tagsdc-base-coco", "tags-base-coco", "baseline-base-coco", "published-base")
    for name in (*encoder, "coco-boxes-vsrn", "published-matcher"):
        text = (ROOT / "tagsds" / "recipes" / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text)
    (folder / "recipe.yaml").write_text(
        "base: tagsdc-base-coco\nbatch:\n  pairs: 4\noptimiser:\n  lr: 1e-4\n  steps: 20\nloss: {syn: 0.5}\ndata:\n  cache: none\n"
    )


def load_recipe(folder: Path) -> Any:
    config = load_config(str(folder / "recipe.yaml")), load_config(str(folder / "coco-boxes-vsrn.yaml"))
    assert all(isinstance(one, RunConfig) for one in config)
    return config


def make_settings(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_config(load_config("tagsdc-base-coco", ["seed=3", "batch.tokens=0"]), folder / "config.yaml")


def load_settings(folder: Path) -> Any:
    """A run's saved settings, as --resume compares them."""
    config = load_config("tagsdc-base-coco", ["seed=3", "batch.tokens=0"])
    saved = folder / "config.yaml"
    return different_settings(saved, config) if saved.is_file() else None, pairs_of(saved)


def make_deepspeed(folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in (ROOT / "ds_configs").glob("*.json"):
        shutil.copy(path, folder)


def load_deepspeed(folder: Path) -> Any:
    config = load_config("tagsdc-base-coco")
    found = {path.name: read_ds_config(path, config, 2, True) for path in sorted(folder.glob("*.json"))}
    return found, [(zero_stage(ds), offloads(ds)) for ds in found.values()]


def make_checkpoint(folder: Path) -> None:
    saved(folder, 4)


def load_checkpoint(folder: Path) -> Any:
    """What `--resume` takes: every file is held against its checksum before DeepSpeed unpickles it."""
    found = find(folder, World())
    assert found is not None
    return found.about, {path.name: path.read_bytes() for path in sorted(found.folder.glob("*.pt"))}
