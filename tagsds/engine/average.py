"""The running mean of the weights (exponential moving average), which generalises better than the last ones at a constant cost
(Polyak and Juditsky 1992; Tarvainen and Valpola, NeurIPS 2017, arXiv 1703.01780)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tagsds.engine.weights import whole_state
from tagsds.training_settings import OptimiserConfig


class WeightAverage:
    """mean <- d mean + (1 - d) weights after every `every` steps, with d = average ** every, `optimiser.average` being that of a
    step. In the first n updates d is at most (n + 1) / (n + 10), so that the weights of the beginning are forgotten.

    `mean` {name of a parameter: fp32 on the CPU}, empty before the first update. Every rank holds all of it. It goes into the
    checkpoint; with it validations and exports take the mean in place of the weights, beside the current buffers.
    """

    def __init__(self, config: OptimiserConfig, model: Any, stage: int) -> None:
        self.decay, self.every = config.average, config.average_every
        self.model, self.stage = model, stage
        self.mean: dict[str, Tensor] = {}
        self.updates = 0

    @property
    def on(self) -> bool:
        return self.decay > 0

    def step(self, done: int) -> None:
        """After optimiser step `done`. Collective."""
        if not self.on or done % self.every:
            return
        now = whole_state(self.model, self.stage)
        names = [name for name, _ in self.model.named_parameters()]
        if not self.mean:
            self.mean = {name: now[name].clone() for name in names}
        kept = min(self.decay**self.every, (self.updates + 1) / (self.updates + 10))
        self.updates += 1
        with torch.no_grad():
            for name in names:
                self.mean[name].lerp_(now[name], 1 - kept)

    def weights(self) -> dict[str, Tensor] | None:
        """What is validated and exported, as `whole_state` gives it; None: the weights themselves."""
        if not self.mean:
            return None
        return self.mean | {name: buffer.detach().cpu() for name, buffer in self.model.named_buffers()}

    def as_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"mean": self.mean, "updates": self.updates} if self.on else {}

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Of a checkpoint; one that was written without an average leaves it to begin anew."""
        if self.on and saved:
            self.mean, self.updates = dict(saved["mean"]), int(saved["updates"])
