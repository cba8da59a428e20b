"""The curve of the loss on 2 ranks under ZeRO 1, 2 and 3 is the curve of 1 process without DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.sampler import PositiveSampler
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw, seed_of
from tagsds.models.uniter.initialise import HEADS
from tagsds.objectives import OBJECTIVES
from tagsds.scoring.scorer import Scorer
from tagsds.train import build_model
from tests import launch

PRETRAIN = ["objective=pretrain", "optimiser.steps=8"]


def plain_losses(world: Path, overrides: list[str]) -> list[float]:
    """Plain PyTorch: two micro-batches where the other run has two ranks, gradients averaged, clipped, AdamW by hand-set groups."""
    config = load_config("published-base", overrides)
    bank, manifest = load_bank(world, "train")
    vocab = Vocabulary.of(load_tokenizer(world / "tokenizer"))
    model = build_model(config, manifest, vocab)
    objective = OBJECTIVES[config.objective](model, config, vocab, Scorer(model))
    trained = OBJECTIVES[config.objective].heads(config)
    shared = model.text_embedding.word.weight
    for head in HEADS:
        for parameter in getattr(model, head).parameters():
            if parameter is not shared:
                parameter.requires_grad_(head in trained)
    decay = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=1.0, betas=(0.9, 0.98)
    )
    sampler = PositiveSampler(bank.num_captions, 4, 2, seed_of(42, "positives", 0))
    steps, losses = config.optimiser.steps, []
    model.train()
    for step in range(steps):
        optimiser.zero_grad()
        total = 0.0
        for slot in range(2):
            draw = Draw(42, step, slot)
            torch.manual_seed(seed_of(42, step, slot, "dropout"))
            report = objective(bank, sampler.at(draw), draw)
            (report.total / 2).backward()
            total += report.total.item() / 2
        torch.nn.utils.clip_grad_norm_([*decay, *plain], 2.0)
        for group in optimiser.param_groups:
            group["eps"] = 1e-6 / (1 - 0.98 ** (step + 1)) ** 0.5  # the published AdamW adds it before the bias correction
            group["lr"] = 1e-3 * ((step + 1) / 2 if step < 2 else (steps - step) / (steps - 2))
        optimiser.step()
        losses.append(total)
    return losses


@pytest.mark.parametrize(
    ("stage", "task"), [(1, launch.TAGS_DC), (2, launch.TAGS_DC), (3, launch.TAGS_DC), (3, PRETRAIN)],
    ids=["zero1-tagsdc", "zero2-tagsdc", "zero3-tagsdc", "zero3-pretrain"],
)  # fmt: skip
def test_two_ranks_equal_one_process(world: Path, tmp_path: Path, stage: int, task: list[str]) -> None:
    overrides = [*launch.TINY, *task]
    ds_config = "ds_configs/zero1.json" if stage == 1 else "ds_configs/zero2.json"
    if stage == 3:
        ds_config = str(tmp_path / "zero3.json")
        Path(ds_config).write_text('{"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}')
    launch.train(world, tmp_path / "run", ds_config, overrides, ranks=2)
    expected = plain_losses(world, overrides)
    measured = [row["loss/total"] for row in launch.rows(tmp_path / "run")]
    assert len(measured) == len(expected)
    assert expected[0] != pytest.approx(expected[-1], rel=1e-3), "the loss must move for this comparison to mean anything"
    assert measured == pytest.approx(expected, rel=2e-5)
