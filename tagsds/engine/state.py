"""All of a run that resumes, besides weights and optimiser."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

VERSION = 2
"""of a checkpoint. 1 named none; since then the discrimination head's two outputs changed places and Adam's eps its place, so that
old weights and moments would go on as something else without a word."""


@dataclass
class TrainState:
    """All that resumes. Weights, buffers and the optimiser's moments are DeepSpeed's part of a checkpoint; everything else is here,
    since positives, negatives and dropout are functions of (seed, step, slot): no random state and no place in the data is kept.
    It goes into the checkpoint's client state and, for people, into its about.json. A further field that must survive a kill is
    one line here.

    step            optimiser steps taken
    true_pairs      matching pairs seen in them, by all ranks together
    figure          what `best` is: the validation's figure, split and images; "" before the first validation
    best, best_step the best figure of a validation and the step after which it was found; of equal ones the earlier
    not_better      validations since then
    stopped         `validate.patience` ended the run at `step`
    skipped, in_a_row   steps that were left out, since a loss or a gradient was not finite; those of them at the end
    pairs, slots    true pairs of a micro-batch, and micro-batches of a step on all ranks together: their product stays
    accumulation    batch.accumulation as the run's first start had it: settings are repeated on resuming
    ranks, zero_stage   of the run that wrote the checkpoint; another number or stage is converted
    version         of the checkpoint's format
    """

    step: int = 0
    true_pairs: int = 0
    figure: str = ""
    best: float | None = None
    best_step: int = 0
    not_better: int = 0
    stopped: bool = False
    skipped: int = 0
    in_a_row: int = 0
    pairs: int = 0
    slots: int = 0
    accumulation: int = 0
    ranks: int = 1
    zero_stage: int = 0
    version: int = VERSION

    def judge(self, figure: str, value: float, patience: int) -> bool:
        """Take in a validation after `step`; whether it is the best so far. Sets `stopped` after `patience` (0: never) validations
        in a row that were not. Values of another figure are not compared."""
        if figure != self.figure:
            self.figure, self.best, self.not_better = figure, None, 0
        better = self.best is None or value > self.best
        if better:
            self.best, self.best_step, self.not_better = value, self.step, 0
        else:
            self.not_better += 1
            self.stopped = 0 < patience <= self.not_better
        return better

    def ending(self) -> str:
        """How a run ended, in one line."""
        best = f"best {self.figure}: {self.best:.2f} after step {self.best_step} (export-best)" if self.best is not None else ""
        if self.stopped:
            return f"stopped after {self.step} steps, {self.not_better} validations without a better one; {best}"
        return f"done after {self.step} steps" + (f"; {best}" if best else "")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over a checkpoint's state."""
        for f in fields(self):
            if f.name in saved:
                setattr(self, f.name, saved[f.name])
