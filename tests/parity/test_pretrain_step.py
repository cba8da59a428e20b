"""UNITER's pre-training through DeepSpeed against the literal objective, optimiser and schedule: every term, the total and the norm
of the gradient of every step, and the weights after the last.

`literal_pretrain.py` and `literal_optimiser.py` follow method and released code. Known to differ from the released runs:

- The released pre-training adds the gradients of its 2 accumulated micro-batches, here they are averaged: clip 5.0 and eps 1e-6 act
  there as 2.5 and 5e-7 would here. (Fine-tuning divides, as here.)
- The released schedule is one step ahead in the decay: (steps - t - 1) in the place of (steps - t) at step t, counted from 0; the
  rate of the last step is 1e-8.
- The released optimiser decays the mask embedding and, since it looks for the name "LayerNorm", the weights of the LayerNorms named
  otherwise (those of features and boxes, and of the two region heads).
- The released optimiser counts steps per parameter, from its first gradient on; here a head idle at a step has a gradient of zero.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np

from tagsds.files import sha256_of
from tests.parity import literal_pretrain, runs
from tests.parity.literal_optimiser import train

RECIPE, HEADS = "published-pretrain-base", ["itm", "mlm", "region_class", "region_feature"]
STEPS = [
    "batch.tokens=0", "batch.pairs=3", "batch.accumulation=2", "optimiser.lr=1e-3", "optimiser.steps=8", "optimiser.warmup_steps=3",
    "seed=8",  # draws every task within 8 steps, itm twice
]  # fmt: skip
ALL_TASKS = ["pretrain.mix.itm=1", "pretrain.mix.mlm=1", "pretrain.mix.mrfr=1", "pretrain.mix.mrckl=1", "pretrain.mix.mrc=1"]


def with_soft_labels(world: Path, folder: Path) -> Path:
    """The same corpus, its one-hot rows replaced by distributions in which column 0, background, is often the highest."""
    shutil.copytree(world, folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"background_class": True}
    random = np.random.default_rng(0)
    for shard in manifest["splits"]["train"]["shards"]:
        path = folder / shard["file"]
        with tarfile.open(path) as old, tarfile.open(path.with_suffix(".new"), "w") as new:
            for member in old:
                content = old.extractfile(member).read()
                if member.name.endswith(".classes.npy"):
                    odds = random.gamma(0.3, size=np.load(io.BytesIO(content)).shape)
                    odds[:, 0] *= 20
                    rows = io.BytesIO()
                    np.save(rows, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float16))
                    content = rows.getvalue()
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
        path.with_suffix(".new").rename(path)
        shard |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_five_tasks_are_the_literal_ones(world: Path, tmp_path: Path) -> None:
    world = with_soft_labels(world, tmp_path / "data")
    init = runs.checkpoint(world, tmp_path / "init", HEADS)
    overrides = [*STEPS, *ALL_TASKS]
    config = runs.config_of(RECIPE, overrides)
    settings = config.optimiser
    assert (settings.betas, settings.eps, settings.weight_decay, settings.clip) == ([0.9, 0.98], 1e-6, 0.01, 5.0)
    assert (config.pretrain.wra_weight, config.pretrain.kl_reduction) == (0.1, "mean")
    corpus = runs.Corpus.of(world, config)
    assert corpus.bank.background_class and float((corpus.bank.classes.argmax(dim=1) == 0).float().mean()) > 0.2
    tasks = [literal_pretrain.task_of(config.pretrain, config.seed, step) for step in range(settings.steps)]
    assert set(tasks) == {"itm", "mlm", "mrfr", "mrckl", "mrc"}
    weights, trained = runs.start(init, set(HEADS))
    before = dict(weights)

    def micro_batch(w, step, slot):
        captions, draw = corpus.captions(step, slot), corpus.draw(step, slot)
        return literal_pretrain.micro_batch(w, corpus.bank, captions, config.pretrain, corpus.vocab, draw, runs.HEADS)

    literal = train(weights, trained, micro_batch, settings, config.batch.accumulation)
    rows, after = runs.run(world, tmp_path / "run", RECIPE, overrides, init, "ds_configs/zero0.json")
    runs.compare_rows(rows, literal, rel=1e-5)
    runs.compare_weights(after, weights, before, trained, rel=1e-5, rel_moved=1e-3)
    norms = [row["gradient_norm"] for row in rows]
    assert min(norms) < settings.clip < max(norms), "clipping must act at some steps and not at others"
