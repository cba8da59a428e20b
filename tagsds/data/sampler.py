"""Which true pairs a micro-batch holds: a pure function of (seed, step, slot), so resuming replays nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.draw import Draw, generator


class PositiveSampler:
    """Walks through a fresh permutation of the captions each epoch; a step takes slots * batch of them in order.

    Every rank takes the same number of steps whatever the shards hold, and no pair is skipped or repeated within an epoch.
    """

    def __init__(self, captions: int, batch: int, slots: int, seed: int) -> None:
        self.captions, self.batch, self.slots, self.seed = captions, batch, slots, seed
        self._epochs: dict[int, Tensor] = {}

    def at(self, draw: Draw) -> Tensor:
        """Caption numbers of one micro-batch, int64 [batch], on the CPU."""
        first = (draw.step * self.slots + draw.slot) * self.batch
        position = torch.arange(first, first + self.batch)
        epochs = position // self.captions
        out = torch.empty_like(position)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            out[here] = self._permutation(epoch)[position[here] % self.captions]
        return out

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            if len(self._epochs) > 2:
                self._epochs.clear()
            self._epochs[epoch] = torch.randperm(
                self.captions, generator=generator("cpu", self.seed, "epoch", epoch)
            )
        return self._epochs[epoch]
