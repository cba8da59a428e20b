"""distil: what an ensemble thinks of a true pair and its hard negatives, as a target (tagsds.losses.distillation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from tagsds.errors import UserError
from tagsds.losses.distillation import DistilConfig, distillation
from tagsds.models.load import find_checkpoint, load_model, read_encoder_config
from tagsds.models.uniter import UniterModel
from tagsds.negatives.random import Hard
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States
from tagsds.objectives.retrieval.terms.ranking import hard_captions, hard_images, pairs_of_captions, pairs_of_images
from tagsds.objectives.retrieval.terms.synthetic import by_caption, written_sentences
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


class Teachers:
    """The encoders of `distil.teachers`, asked for the pairs that a step's forward has already."""

    def __init__(self, models: Sequence[UniterModel]) -> None:
        self.scorers = [Scorer(model) for model in models]

    def logits(self, asked: Sequence[Place], draws: Draws, states: States) -> list[tuple[Tensor, ...]]:
        """The ranking logits of the pairs of each place, float32: the student's, with gradient, then each teacher's."""
        device = draws.bank.device
        pairs = states.pairs.subset(torch.cat([torch.arange(p.at.start, p.at.stop, device=device) for p in asked])).compact()
        sizes = [place.at.stop - place.at.start for place in asked]
        found = [tuple(states.logits(place) for place in asked)]
        for scorer in self.scorers:
            Module.to(scorer.model, device)  # they are not moved with the objective
            found.append(scorer(pairs).split(sizes))
        draws.forwards += len(self.scorers) * len(pairs)
        return found


@dataclass
class Lists:
    """What stands in the lists: the pairs of the `negatives` are at `places`, images of each caption and captions of each image in
    turn."""

    true: Place
    places: list[Place]
    negatives: list[Hard]


def over_lists(true: list[Tensor], negatives: list[Tensor], valid: Tensor, temperature: float) -> Tensor:
    """The loss over a true pair and its negatives: true [B], negatives [B, K], the student's then each teacher's; valid [B, K]."""
    lists = [torch.cat([own[:, None], others], dim=1) for own, others in zip(true, negatives, strict=True)]
    return distillation(lists[0], torch.stack(lists[1:]), torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1), temperature)


class Distillation:
    """Both directions, over the pairs that t2i and i2t have, and `offline` candidates of each beside them."""

    heads: tuple[str, ...] = ()

    def __init__(self, config: DistilConfig, teachers: Teachers) -> None:
        self.temperature, self.offline, self.teachers = config.temperature, config.offline, teachers

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Lists:
        asked = Lists(true, [hard_images(draws, plan), hard_captions(draws, plan)], [*draws.hard])
        if self.offline:
            images, captions = draws.offline(self.offline, "offline candidates of the teachers")
            asked.places += [pairs_of_images(draws, plan, images), pairs_of_captions(draws, plan, captions)]
            asked.negatives += [images, captions]
        return asked

    def value(self, asked: Lists, draws: Draws, states: States, true: Tensor) -> TermOutput:
        own, *found = zip(*self.teachers.logits([asked.true, *asked.places], draws, states), strict=True)
        shaped = [[z.view_as(hard.index) for z in of_all] for of_all, hard in zip(found, asked.negatives, strict=True)]
        losses = {}
        for direction, name in enumerate(("t2i", "i2t")):
            negatives = [torch.cat(parts, dim=1) for parts in zip(*shaped[direction::2], strict=True)]
            valid = torch.cat([hard.valid for hard in asked.negatives[direction::2]], dim=1)
            losses[f"distil_{name}"] = over_lists(list(own), negatives, valid, self.temperature) / 2
        return TermOutput(losses)


class WrittenDistillation:
    """Over a true pair and its hardest written sentences, those of syn."""

    heads: tuple[str, ...] = ()

    def __init__(self, temperature: float, teachers: Teachers) -> None:
        self.temperature, self.teachers = temperature, teachers

    def ask(self, draws: Draws, plan: Plan, true: Place) -> tuple[Place, Place]:
        return true, written_sentences(draws, plan)

    def value(self, asked: tuple[Place, Place], draws: Draws, states: States, true: Tensor) -> TermOutput:
        own, written = zip(*self.teachers.logits(asked, draws, states), strict=True)
        tables = [by_caption(z, draws.written, len(true)) for z in written]
        valid = tables[0][1]
        return TermOutput({"distil_syn": over_lists(list(own), [table for table, _ in tables], valid, self.temperature)})
