"""A look at the dev split while training goes on: recall of the first images, in fp32, the work shared by all ranks.

A validation changes no later step, to the bit: it draws nothing from the global random generators, each module's mode is put back,
and so are BatchNorm's running statistics, which are averaged over the ranks for the time of the validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tagsds.data.shards import load_bank
from tagsds.engine.average import WeightAverage
from tagsds.engine.weights import averaged_buffers, fill, fresh_copy, is_whole, whole_state
from tagsds.errors import UserError, nearest
from tagsds.evaluators import (
    EVALUATORS,
    Evaluator,
    Plan,
    Subject,
    check_evaluators,
    make_evaluators,
    prepare_evaluators,
    run_evaluators,
)  # fmt: skip
from tagsds.evaluators.settings import ValidateConfig
from tagsds.formats.manifest import Manifest
from tagsds.ranks import World

NOT_FIGURES = (
    "format", "version", "images", "captions", "captions_per_image", "shared_captions",
    "seconds", "pairs_scored", "pairs_per_second",
)  # fmt: skip


class Validation:
    """`run()` -> figures of the model with its current weights. Collective, the same on all ranks.

    The model itself is scored where it holds its weights in fp32. In half precision, under ZeRO-3 and with a running mean of the
    weights (`optimiser.average`), a copy is: each rank keeps
    one on its device and fills it with the optimiser's fp32 weights, which are what an export writes. So a figure is that of
    `tagsds-evaluate` on an export of the same step. (A bf16 forward would give many equal scores, which count against the model;
    with whole weights, no rank waits for another's forward.)
    """

    def __init__(
        self, config: ValidateConfig, model: Any, manifest: Manifest, tokenizer: Any, world: World, average: WeightAverage
    ) -> None:
        self.config, self.model, self.world, self.stage, self.average = config, model, world, average.stage, average
        manifest.shards(config.split)  # UserError for an unknown split
        self.evaluators = chosen_evaluators(config)
        plan = Plan(manifest, config.split, type(model), config.first)
        check_evaluators(self.evaluators, plan)
        first = None if any(evaluator.any_image for evaluator in self.evaluators) else config.first
        bank, _ = load_bank(manifest.folder, config.split, first, checksum=False, classes=False)
        self.scored = model
        if average.on or not is_whole(model, self.stage):
            self.scored = fresh_copy(model).requires_grad_(False).to(world.device)
        self.subject = Subject.of(self.scored, bank.to(world.device), config.first, world=world, tokenizer=tokenizer)
        self.images = self.subject.images
        prepare_evaluators(self.evaluators, self.subject)

    @property
    def figure(self) -> str:
        """What `validate.keep` measures, in words."""
        listed = f", the first {self.config.rerank} of {self.config.shortlist}" if self.config.shortlist else ""
        return f"{self.config.keep} of the first {self.images} images of {self.config.split}{listed}"

    def due(self, step: int) -> bool:
        """Whether to look after so many optimiser steps."""
        return step % self.config.every == 0

    def run(self) -> dict[str, float]:
        """Figures by name ("recalls/rsum"), equal on all ranks, and "seconds", the time it took."""
        started = time.perf_counter()
        with averaged_buffers(self.model, self.world), self.whole_weights():
            results = run_evaluators(self.evaluators, self.subject)
        found = numbers_of(results, self.config.shortlist) if results is not None else {}
        keep = self.config.keep
        if self.world.is_main and keep not in found:
            raise UserError(f"validate.keep '{keep}' is no figure of this validation: {nearest(keep, found)}")
        return {**found, keep: self.world.agree_on_number(found.get(keep, 0.0)), "seconds": time.perf_counter() - started}

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Fill the copy, where there is one."""
        if self.scored is not self.model:
            fill(self.scored, self.average.weights() or whole_state(self.model, self.stage))
        yield


def chosen_evaluators(config: ValidateConfig) -> list[Evaluator]:
    """UserError for what contradicts itself."""
    if not config.evaluators:
        raise UserError("validate.evaluators is empty; name one (recall), or set validate.every=0.")
    for key, value in {"first": config.first, "rerank": config.rerank}.items():
        if value < 1:
            raise UserError(f"validate.{key}={value} must be above zero.")
    choice: dict[str, dict[str, Any] | None] = dict.fromkeys(config.evaluators)
    if config.shortlist:
        choice = {name: None for name in choice if name not in EVALUATORS or not EVALUATORS[name].needs_matrix}
        choice["rerank"] = {"shortlist": config.shortlist, "ks": (config.rerank,)}
    return make_evaluators(choice)


def numbers_of(results: Mapping[str, Any], shortlist: str = "") -> dict[str, float]:
    """The numbers of a results file by their path, without its lists: {"recalls": {"rsum": 1.0}} -> {"recalls/rsum": 1.0}."""
    if shortlist:
        results = {**results, "recalls": results["rerank"][-1]["recalls"]}
    out: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            out |= {f"{key}/{name}": number for name, number in numbers_of(value).items()}
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in NOT_FIGURES:
            out[key] = float(value)
    return out
