"""distil: what an ensemble thinks of a true pair and its hard negatives, as a target (tagsds.losses.distillation)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from tagsds.errors import UserError
from tagsds.losses.distillation import DistilConfig, distillation
from tagsds.models.load import find_checkpoint, load_model, read_encoder_config
from tagsds.models.uniter import UniterModel
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.ranking import hard_captions, hard_images
from tagsds.objectives.retrieval.terms.term import TermOutput
from tagsds.scoring.scorer import Scorer

MUST_AGREE = ("vocab_size", "region_dim")


def load_teachers(folders: Sequence[str], student: Any) -> list[UniterModel]:
    """The encoders of `distil.teachers`, in fp32, without gradient; no optimiser sees them and no checkpoint holds them. UserError
    for one of another vocabulary or width of features than the student's config has, or without a trained ranking head."""
    teachers = []
    for name in folders:
        folder, _ = find_checkpoint(Path(name))
        config = read_encoder_config(folder)
        for key in MUST_AGREE:
            theirs, ours = getattr(config, key), getattr(student, key)
            if theirs != ours:
                has = f"{folder} has {key} {theirs}, the model {ours}"
                raise UserError(f"distil.teachers: {has}; give encoders of the same corpus.")
        if "rank" not in config.trained_heads:
            raise UserError(f"distil.teachers: {folder} has no trained ranking head; give a fine-tuned run, such as a baseline.")
        teachers.append(load_model(folder).requires_grad_(False))
    return teachers


class Distillation:
    """Both directions, over the pairs that t2i and i2t have in the forward already; the teachers score them once more."""

    heads: tuple[str, ...] = ()

    def __init__(self, config: DistilConfig, teachers: Sequence[UniterModel]) -> None:
        self.temperature = config.temperature
        self.scorers = [Scorer(teacher) for teacher in teachers]

    def ask(self, draws: Draws, plan: Plan, true: Place) -> tuple[Place, Place, Place]:
        return true, hard_images(draws, plan), hard_captions(draws, plan)

    def value(self, asked: tuple[Place, Place, Place], draws: Draws, states: States, true: Tensor) -> TermOutput:
        device = true.device
        index = torch.cat([torch.arange(place.at.start, place.at.stop, device=device) for place in asked])
        pairs = states.pairs.subset(index).compact()
        sizes = [place.at.stop - place.at.start for place in asked]
        theirs = []
        for scorer in self.scorers:
            Module.to(scorer.model, device)  # they are not moved with the objective
            theirs.append(scorer(pairs).split(sizes))
        draws.forwards += len(self.scorers) * len(pairs)
        ours = [states.logits(place) for place in asked]
        losses = {}
        for name, direction, hard in zip(("t2i", "i2t"), (1, 2), draws.hard, strict=True):
            of_both = [torch.cat([z[0][:, None], z[direction].view_as(hard.index)], dim=1) for z in (ours, *theirs)]
            valid = torch.cat([torch.ones_like(hard.valid[:, :1]), hard.valid], dim=1)
            losses[f"distil_{name}"] = distillation(of_both[0], torch.stack(of_both[1:]), valid, self.temperature) / 2
        return TermOutput(losses)
