"""AdamW, clipping and schedule by formula, and the loop around them: gradients of the micro-batches averaged, an update a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tagsds.config import OptimiserConfig
from tests.parity.literal_encoder import Weights

Terms = dict[str, Tensor]
MicroBatch = Callable[[Weights, int, int], Terms]  # (weights, step, slot) -> the terms and their weighted sum, "total"


def is_decayed(name: str) -> bool:
    """Neither biases nor LayerNorm (nor the mask embedding, see the list of differences in test_pretrain_step.py)."""
    return not (name.endswith("bias") or "norm." in name or name == "image_embedding.mask")


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Of step 0, 1, ...: lr/W, 2 lr/W, ..., lr in the W steps of warm-up, then down a line that would be 0 at `steps`."""
    if step < config.warmup_steps:
        return (step + 1) * config.lr / config.warmup_steps
    return config.lr * (config.steps - step) / (config.steps - config.warmup_steps)


class AdamW:
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr (sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps) + decay p): the
    released AdamW adds eps before the bias of v is corrected."""

    def __init__(self, weights: Weights, config: OptimiserConfig) -> None:
        self.config = config
        self.first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.second = {name: torch.zeros_like(value) for name, value in weights.items()}

    def update(self, weights: Weights, gradients: Weights, step: int) -> float:
        """In place; the norm of all gradients together, before clipping."""
        config, (b1, b2) = self.config, self.config.betas
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        clipped = min(1.0, config.clip / norm)
        rate = learning_rate(step, config)
        for name, gradient in gradients.items():
            g, t = gradient * clipped, step + 1
            self.first[name] = b1 * self.first[name] + (1 - b1) * g
            self.second[name] = b2 * self.second[name] + (1 - b2) * g**2
            moved = math.sqrt(1 - b2**t) / (1 - b1**t) * self.first[name] / (torch.sqrt(self.second[name]) + config.eps)
            decay = config.weight_decay if is_decayed(name) else 0.0
            weights[name] = weights[name] - rate * (moved + decay * weights[name])
        return norm


def train(
    weights: Weights, trained: list[str], micro_batch: MicroBatch, config: OptimiserConfig, accumulation: int
) -> list[dict[str, float]]:
    """The rows that log.jsonl should hold: terms averaged over the micro-batches of a step. `weights` holds the outcome."""
    optimiser = AdamW({name: weights[name] for name in trained}, config)
    rows = []
    for step in range(config.steps):
        sums = {name: torch.zeros_like(weights[name]) for name in trained}
        row: dict[str, list[float]] = {}
        for slot in range(accumulation):
            leaves = {name: value.clone().requires_grad_(name in sums) for name, value in weights.items()}
            terms = micro_batch(leaves, step, slot)
            found = torch.autograd.grad(terms["total"], [leaves[name] for name in sums], allow_unused=True)
            for name, gradient in zip(sums, found):
                if gradient is not None:  # else idle at this step: a gradient of zero
                    sums[name] = sums[name] + gradient / accumulation
            for name, value in terms.items():
                row.setdefault(f"loss/{name}", []).append(float(value.detach()))
        norm = optimiser.update(weights, sums, step)
        averages = {name: sum(values) / len(values) for name, values in row.items()}
        rows.append({"lr": learning_rate(step, config), "gradient_norm": norm, **averages})
    return rows
