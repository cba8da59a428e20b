"""UNITER's pre-training through DeepSpeed against the literal objective, optimiser and schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import literal_pretrain, runs
from tests.parity.literal_optimiser import train

HEADS = ["itm", "mlm", "region_class", "region_feature"]
STEPS = [
    "batch.tokens=0", "batch.pairs=3", "batch.accumulation=2", "optimiser.lr=1e-3", "optimiser.steps=8", "optimiser.warmup_steps=3",
]  # fmt: skip
ALL_TASKS = ["pretrain.mix.itm=1", "pretrain.mix.mlm=1", "pretrain.mix.mrfr=1", "pretrain.mix.mrckl=1", "pretrain.mix.mrc=1"]


@pytest.fixture(scope="module")
def init(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.checkpoint(world, tmp_path_factory.mktemp("pretrain") / "init", HEADS)


def test_five_tasks(world: Path, tmp_path: Path, init: Path) -> None:
    overrides = [*STEPS, *ALL_TASKS, "seed=8"]
    config = runs.config_of("published-pretrain-base", overrides)
    corpus = runs.Corpus.of(world, config)
    steps = config.optimiser.steps
    tasks = [literal_pretrain.task_of(config.pretrain, config.seed, step) for step in range(steps)]
    assert set(tasks) == set(literal_pretrain.HEADS), tasks

    weights, trained = runs.start(init, set(HEADS))
    before = dict(weights)

    def micro_batch(w, step, slot):
        captions, draw = corpus.captions(step, slot), corpus.draw(step, slot)
        return literal_pretrain.micro_batch(w, corpus.bank, captions, config.pretrain, corpus.vocab, draw, runs.HEADS)

    literal = train(weights, trained, micro_batch, config.optimiser, config.batch.accumulation)
    rows, after = runs.run(world, tmp_path / "run", "published-pretrain-base", overrides, init, "ds_configs/zero0.json")
    print(tasks, literal)
    print(runs.compare_rows(rows, literal, 1))
    print(runs.compare_weights(after, weights, before, trained, 1e-6, 1e-4))
