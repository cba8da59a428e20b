"""A real DeepSpeed run beside its literal one: same start, same draws; rows of the log and weights after the last step compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tagsds.config import RunConfig, load_config
from tagsds.data.bank import Bank
from tagsds.data.sampler import PositiveSampler
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw, seed_of
from tagsds.models import UniterConfig, UniterModel
from tests import launch
from tests.parity.literal_encoder import Weights, read_weights

HEADS = 2  # of the attention
SIZES = [
    "model.dropout=0", "model.attention_dropout=0", "model.hidden_size=32", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.intermediate_size=64", "log.every=1", "log.panel_every=0",
    "log.checkpoint_every=0", "log.examples=0",
]  # fmt: skip
ALL_HEADS = {"itm", "rank", "mlm", "discriminate", "correct", "region_feature", "region_class"}


def checkpoint(world: Path, folder: Path, trained_heads: list[str], common: float = 0.0) -> Path:
    """A folder to start from: two layers of width 32, every parameter off its initial value, the named heads trained.

    common   added to the MLM logits of the 12 commonest pieces: refills then are often words of the image, which the filter drops
    """
    bank, manifest = load_bank(world, "train")
    torch.manual_seed(3)
    config = UniterConfig(
        vocab_size=manifest.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=64,
        max_position_embeddings=int(bank.tokens.lengths.max()) + 20, region_dim=manifest.feature_dim,
        num_region_classes=manifest.num_classes, trained_heads=trained_heads,
    )  # fmt: skip
    model = UniterModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.mlm.decoder.bias[torch.bincount(bank.tokens.values).argsort(descending=True)[:12]] += common
    model.save_pretrained(folder)
    load_tokenizer(world / "tokenizer").save_pretrained(folder)
    return folder


@dataclass
class Corpus:
    """What the literal run reads: the training split, its tokenizer, and which captions a micro-batch holds."""

    bank: Bank
    vocab: Vocabulary
    config: RunConfig

    @staticmethod
    def of(world: Path, config: RunConfig) -> Corpus:
        return Corpus(load_bank(world, "train")[0], Vocabulary.of(load_tokenizer(world / "tokenizer")), config)

    def draw(self, step: int, slot: int) -> Draw:
        return Draw(self.config.seed, step, slot)

    def captions(self, step: int, slot: int) -> list[int]:
        batch, seed = self.config.batch, seed_of(self.config.seed, "positives", 0)
        sampler = PositiveSampler(self.bank.num_captions, batch.pairs, batch.accumulation, seed)
        return sampler.at(self.draw(step, slot)).tolist()


def config_of(recipe: str, overrides: list[str]) -> RunConfig:
    return load_config(recipe, [*SIZES, *overrides])


def start(folder: Path, trained_heads: set[str]) -> tuple[Weights, list[str]]:
    """The weights in float64, and the names of those that training may move: all but the heads the stage has no use for."""
    weights = read_weights(folder)
    return weights, [name for name in weights if name.split(".")[0] not in ALL_HEADS - trained_heads]


def run(
    world: Path, output: Path, recipe: str, overrides: list[str], init: Path, ds_config: str
) -> tuple[list[dict[str, Any]], Weights]:
    """The same command as a user's, on one rank; the rows of its log and the weights it exports."""
    launch.train(world, output, ds_config, [*SIZES, *overrides, f"init={init}"], recipe=recipe)
    return launch.rows(output), read_weights(output / "export")


def compare_rows(measured: list[dict[str, Any]], literal: list[dict[str, float]], rel: float) -> float:
    """Every term, the total, the norm of the gradient and the rate of every step; the largest relative difference."""
    assert len(measured) == len(literal)
    worst = 0.0
    for ours, theirs in zip(measured, literal):
        logged = {name for name in ours if name.startswith("loss/")}
        assert logged == {name for name in theirs if name.startswith("loss/")}
        for name, value in theirs.items():
            difference = abs(ours[name] - value) / max(abs(value), 1e-12)
            assert difference <= rel, (ours["step"], name, ours[name], value)
            worst = max(worst, difference)
    return worst


def compare_weights(measured: Weights, literal: Weights, before: Weights, trained: list[str], rel: float, rel_moved: float) -> dict:
    """Per parameter, norms: |ours - literal| <= rel |literal|, and <= rel_moved times how far training moved it.

    The keys' bias shifts all scores of a query alike, so its gradient is an exact zero: what moves it is rounding over eps,
    which is only bounded here (by 5 % of what moves the values' bias).
    """
    assert set(measured) == set(literal)
    worst = {"weights": 0.0, "moved": 0.0}
    for name, value in literal.items():
        ours, old = measured[name], before[name]
        if name not in trained:
            assert torch.equal(ours, old), f"{name} is idle"
            continue
        if name.endswith("qkv.bias"):
            query, keys, values = zip(*(x.chunk(3) for x in (ours, value, old)))
            assert float((keys[0] - keys[1]).abs().max()) < 0.05 * float((values[1] - values[2]).abs().max()), name
            ours, value, old = (torch.cat([q, v]) for q, v in zip(query, values))
        difference, size, moved = float((ours - value).norm()), float(value.norm()), float((value - old).norm())
        assert difference <= rel * size, (name, difference / size)
        if name == "image_embedding.mask" and not moved:
            continue  # nothing is hidden in fine-tuning
        assert moved > 0, f"{name} has not moved"
        assert difference <= rel_moved * moved, (name, difference / moved)
        worst = {"weights": max(worst["weights"], difference / size), "moved": max(worst["moved"], difference / moved)}
    return worst
