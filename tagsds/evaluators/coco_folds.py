"""COCO's "1K" figures: recalls of five folds of a thousand images each, averaged."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagsds.errors import UserError
from tagsds.evaluators.console import DEFAULT_AT, recall_table
from tagsds.evaluators.metrics import coco_folds
from tagsds.evaluators.protocol import Evaluator, Plan, Subject
from tagsds.evaluators.recall import every, note_of, recall_tables, whole_numbers
from tagsds.evaluators.section import Section


@dataclass(frozen=True)
class CocoFoldsSettings:
    """folds of images_per_fold consecutive images each, which together are all that are ranked. at: as of `recall`."""

    folds: int = 5
    images_per_fold: int = 1000
    at: tuple[int, ...] = DEFAULT_AT

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", whole_numbers("coco-folds.at", self.at))


class CocoFolds(Evaluator):
    """`coco_1k` of the results file."""

    name = "coco-folds"
    Settings = CocoFoldsSettings

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--coco-folds", action="store_true", help="also COCO 1K: mean of five folds of 1,000 images")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return options.coco_folds and not options.no_retrieval

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"at": (*DEFAULT_AT, *options.recall_at)}

    def check(self, plan: Plan) -> None:
        wanted = self.settings.folds * self.settings.images_per_fold
        if plan.images != wanted:
            raise UserError(f"coco-folds needs {wanted} images, split '{plan.split}' gives {plan.images}; omit it.")

    def headline(self, subject: Subject) -> dict[str, Any]:
        chosen = self.settings
        found = coco_folds(subject.matrix, subject.image_of_caption, chosen.folds, chosen.images_per_fold, chosen.at)
        return {"coco_1k": found.as_dict()}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        return recall_table({"COCO 1K, mean of 5 folds": results["coco_1k"]}) if "coco_1k" in results else None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        entries = [(*found, found[1]["coco_1k"], note_of(found[1])) for found in every(runs) if "coco_1k" in found[1]]
        return Section("recall", recall_tables(entries, "COCO 1K, mean of five folds"))
