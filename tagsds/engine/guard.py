"""Steps whose loss or gradient is not finite are left out: weights and moments stay as they were, and the captions are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.engine.state import TrainState
from tagsds.errors import UserError
from tagsds.ranks import World

NAMED = 8  # captions in the sentence; all of them are in the file


class StepGuard:
    """Around the micro-batches of an optimiser step: `loss` before each backward, `step` in the place of `engine.step`, and
    `note` once per optimiser step.

    ZeRO 1 to 3 leave a step out by themselves where the norm of the gradient is not finite, on all ranks alike. ZeRO 0 does not;
    here it does. fp16 leaves steps out as a matter of course, to find its loss scale: only a loss that is not finite counts there.
    """

    def __init__(self, engine: Any, output: Path, world: World, allowed: int) -> None:
        self.engine, self.world, self.allowed = engine, world, allowed
        self.path = output / "skipped.jsonl"
        self.gradient_norm: float | None = None
        self._bad: Tensor | None = None
        self._captions: list[tuple[Tensor, Tensor]] = []

    def loss(self, total: Tensor, captions: Tensor) -> Tensor:
        """The loss to call backward on: itself, to the bit, or NaN where it is not finite, so that no rank takes the step."""
        finite = torch.isfinite(total.detach())
        self._bad = ~finite if self._bad is None else self._bad | ~finite
        self._captions.append((captions, ~finite))
        return total * torch.where(finite, 1.0, torch.nan).to(total.dtype)

    def step(self) -> None:
        """After backward: `engine.step()`."""
        if self.engine.zero_optimization_stage() == 0 and self.engine.is_gradient_accumulation_boundary():
            grads = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self.gradient_norm = float(torch.nn.utils.get_total_norm(grads))
            if not isfinite(self.gradient_norm) and not self.engine.fp16_enabled():
                with without_step(self.engine.optimizer):
                    for grad in grads:
                        grad.zero_()
                    self.engine.step()
                return
        self.engine.step()

    @property
    def left_out(self) -> bool:
        """Whether the last optimiser step was left out for its gradient, the same on all ranks."""
        if self.engine.fp16_enabled():
            return False
        if self.engine.zero_optimization_stage() == 0:
            return self.gradient_norm is not None and not isfinite(self.gradient_norm)
        return bool(getattr(self.engine.optimizer, "overflow", False))

    @property
    def bad_loss(self) -> Tensor | bool:
        """Whether a loss of this rank was not finite since the last `note`: a flag for `World.any_of`."""
        return False if self._bad is None else self._bad

    def note(self, bad: bool, bank: Bank, state: TrainState) -> str:
        """End an optimiser step. `bad`: some rank's loss was not finite. A sentence where the step was left out, else "". UserError
        after `allowed` such steps in a row. Collective where the step was left out."""
        captions, self._captions, self._bad = self._captions, [], None
        if not bad and not self.left_out:
            state.in_a_row = 0
            return ""
        state.skipped += 1
        state.in_a_row += 1
        mine = [number for part, wrong in captions if not bad or bool(wrong) for number in part.tolist()]
        images = bank.image_of_caption[torch.tensor(mine, dtype=torch.int64, device=bank.device)].tolist() if mine else []
        named = [
            {"caption": bank.caption_ids[c] if len(bank.caption_ids) else str(c), "image": bank.keys[i], "text": bank.texts[c]}
            for c, i in zip(mine, images, strict=True)
        ]
        every = [row for part in self.world.gather_objects(named) for row in part]
        what = "a loss" if bad else "the gradient"
        if self.world.is_main:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.step, "what": what, "captions": every}, ensure_ascii=False) + "\n")
        listed = ", ".join(f"{row['caption']} (image {row['image']})" for row in every[:NAMED])
        more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
        said = f"step {state.step} was left out: {what} is not finite; captions {listed}{more}"
        if state.in_a_row > self.allowed:
            raise UserError(
                f"{said}. {state.in_a_row} in a row (safety.skip_steps={self.allowed}) end the run: lower optimiser.lr, or look at "
                f"the captions in {self.path}; the last checkpoint is from before."
            )
        return said


@contextmanager
def without_step(optimiser: Any) -> Iterator[None]:
    """Inside, `optimiser.step()` does nothing."""
    optimiser.step = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del optimiser.step
