"""Pre-training: one task per optimiser step (UNITER, arXiv 1909.11740, section 3.2).

Every head is called at every step, with no rows where the task does not need it: each parameter takes part in each backward, which
ZeRO-3 requires.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw, generator
from tagsds.errors import UserError, nearest
from tagsds.formats.candidates import Candidates
from tagsds.models.uniter import Layout, UniterModel
from tagsds.objectives.heads import begin_stage
from tagsds.objectives.output import StepOutput
from tagsds.objectives.protocol import Objective
from tagsds.objectives.settings import PretrainConfig
from tagsds.objectives.tasks import TASKS, Batch
from tagsds.scoring.scorer import Scorer


class Settings(Protocol):
    """The groups of a run's settings that this objective reads."""

    pretrain: PretrainConfig


class PretrainObjective(Objective):
    """forward(bank, captions int64 [B], draw) -> StepOutput."""

    ranks: ClassVar[bool] = False

    def __init__(self, model: UniterModel, config: Settings, vocab: Vocabulary, scorer: Scorer) -> None:
        super().__init__(model, config, vocab, scorer)
        self.config = config.pretrain
        self.vocab = vocab
        for task in config.pretrain.mix:
            if task not in TASKS:
                raise UserError(f"pretrain.mix: unknown task '{task}': {nearest(task, TASKS)}")
        if self.needs_classes(config) and not model.config.num_region_classes:
            raise UserError("pretrain.mix asks for mrckl or mrc but the shards carry no classes.npy; set their odds to 0.")

    @classmethod
    def check(cls, config: Any) -> None:
        if sum(config.pretrain.mix.values()) <= 0:
            raise UserError("pretrain.mix gives every task zero odds; set one above zero.")
        meaningless = {
            f"quintuplet.kind={config.quintuplet.kind}": config.quintuplet.kind not in ("", "online"),
            "distil.teachers": bool(config.distil.teachers),
            "offline.replace_random=true": config.offline.replace_random,
            f"offline.remine_every={config.offline.remine_every}": config.offline.remine_every > 0,
        }
        for setting in (setting for setting, given in meaningless.items() if given):
            raise UserError(f"{setting} has no meaning in pre-training; remove it or set objective=retrieval.")

    @classmethod
    def heads(cls, config: Settings) -> list[str]:
        """The heads this stage trains."""
        mix = config.pretrain.mix
        return sorted({TASKS[task](config.pretrain).head for task, odds in mix.items() if odds and task in TASKS})

    @classmethod
    def needs_classes(cls, config: Settings) -> bool:
        """Whether a task reads the soft labels of the regions."""
        mix = config.pretrain.mix
        return any(TASKS[task](config.pretrain).needs_classes for task, odds in mix.items() if odds and task in TASKS)

    @classmethod
    def prepare(cls, model: Any, config: Settings) -> list[str]:
        return begin_stage(model, cls.heads(config))

    def task_at(self, draw: Draw) -> str:
        """The task of a step, the same on all ranks."""
        tasks = list(self.config.mix)
        odds = torch.tensor([float(self.config.mix[task]) for task in tasks])
        return tasks[int(torch.multinomial(odds, 1, generator=generator("cpu", draw.seed, draw.step, "task")))]

    def forward(self, bank: Bank, captions: Tensor, draw: Draw, candidates: Candidates | None = None) -> StepOutput:
        name = self.task_at(draw)
        task, batch = TASKS[name](self.config), Batch.of(bank, captions)
        task.hide(batch, self.vocab, draw.generator(bank.device, name))
        pairs = batch.pairs()
        layout = Layout.of(pairs)
        states = self.model(pairs, task.positions(batch, layout))
        found = task.value(self.model, states, layout, batch)
        total = 0.0 * self.idle(states)
        for weight, term in found.terms.values():
            total = total + weight * term
        return StepOutput(total, {name: term for name, (_, term) in found.terms.items()}, found.counters, {}, len(pairs))

    def idle(self, states: Tensor) -> Tensor:
        """Every head on no rows: an exact zero on the graph."""
        model, none = self.model, states[:0]
        weight = model.image_embedding.feature.weight
        empty = [model.itm(model.pooler(none)), model.mlm(none), model.region_feature(none, weight), model.region_class(none)]
        return torch.stack([out.sum().float() for out in empty]).sum()
