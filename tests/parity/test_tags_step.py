"""TAGS and TAGS-DC through DeepSpeed against the literal objective, optimiser and schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import literal_tags, runs
from tests.parity.literal_optimiser import train

BEFORE = {1: ["itm", "mlm", "region_class", "region_feature"], 2: ["itm", "mlm", "rank", "region_class", "region_feature"]}
HEADS = {1: {"rank", "mlm"}, 2: {"rank", "mlm", "discriminate", "correct"}}
RECIPES = {1: "tags-base-coco", 2: "tagsdc-base-coco"}  # the published lambdas, clip, eps and tau
STEPS = [
    "optimiser.lr=1e-3", "optimiser.steps=5", "optimiser.warmup_steps=2", "negatives.count=9", "negatives.keep=3",
    "synthetic.maskings=3", "synthetic.refills=4",
]  # fmt: skip
ORDER_ONE = ["loss.syn=0.8", "loss.mlm=0.5", "loss.disc=1.1", "loss.corr=0.6"]

CASES = {  # stage, how the pairs of a step are cut into micro-batches, weights of the terms, DeepSpeed file
    "stage1": (1, ["batch.pairs=1", "batch.accumulation=4"], [], "ds_configs/zero0.json"),
    "stage2": (2, ["batch.pairs=1", "batch.accumulation=4"], [], "ds_configs/zero2.json"),
    "stage2-order-one": (2, ["batch.pairs=3", "batch.accumulation=2"], ORDER_ONE, "ds_configs/zero1.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_stage(world: Path, tmp_path: Path, case: str) -> None:
    stage, cut, lambdas, ds_config = CASES[case]
    init = runs.checkpoint(world, tmp_path / "init", BEFORE[stage])
    overrides = [*STEPS, *cut, *lambdas, "log.export_at=[]"]
    config = runs.config_of(RECIPES[stage], overrides)
    corpus = runs.Corpus.of(world, config)
    rows, after = runs.run(world, tmp_path / "run", RECIPES[stage], overrides, init, ds_config)

    weights, trained = runs.start(init, HEADS[stage])
    untouched = dict(weights)
    literal_tags.begin_heads(weights, sorted(HEADS[stage] - set(BEFORE[stage])))
    before, survived = dict(weights), []

    def micro_batch(w, step, slot):
        captions, draw = corpus.captions(step, slot), corpus.draw(step, slot)
        micro = literal_tags.MicroBatch(w, corpus.bank, captions, config, corpus.vocab, draw, runs.HEADS)
        survived.extend(micro.counts)
        return micro.terms

    literal = train(weights, trained, micro_batch, config.optimiser, config.batch.accumulation)
    print(survived)
    print(runs.compare_rows(rows, literal, 1))
    print(runs.compare_weights(after, weights, before, trained, 1, 1e9))
