"""Ensembles: the average of several models' scores, as the published pairs of VSRN and BFAN are made (arXiv 1909.02701,
1909.11416). One model and an average of two are different things, so their figures stand apart."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.errors import UserError
from tagsds.evaluators.console import recall_table
from tagsds.evaluators.edits import edits_table
from tagsds.evaluators.further import Further
from tagsds.evaluators.protocol import Evaluator, Plan, Subject
from tagsds.evaluators.recall import every, recall_tables
from tagsds.evaluators.section import Section


@dataclass(frozen=True)
class EnsembleSettings:
    """runs: checkpoints of the same kind as the model, whose scores are averaged with its own."""

    runs: tuple[Path, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(Path(run) for run in self.runs))


class Ensemble(Evaluator):
    """`ensemble` of the results file: the headlines of the other evaluators for the averaged scores."""

    name = "ensemble"
    Settings = EnsembleSettings
    ranks = False
    needs_matrix = False

    def __init__(self, settings: EnsembleSettings) -> None:
        super().__init__(settings)
        self.further: list[Further] = []
        self.names: list[str] = []
        self.others: list[Subject] = []

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ensemble", type=Path, nargs="+", default=[], metavar="RUN", help="average with these models too")

    @classmethod
    def check_options(cls, options: argparse.Namespace) -> None:
        if options.no_exact and options.ensemble:
            raise UserError("--ensemble needs the scores of all pairs; omit --no-exact.")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return bool(options.ensemble)

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"runs": options.ensemble} if options.ensemble else {}

    def check(self, plan: Plan) -> None:
        if not any(averages(evaluator) for evaluator in self.beside):
            raise UserError("ensemble has nothing to average: choose another evaluator beside it, 'recall' for example.")
        self.further = [Further.find(run) for run in self.settings.runs]
        folders = [further.folder for further in self.further]
        self.names = member_names([plan.folder, *folders]) if plan.folder else ["the model", *member_names(folders)]
        for further in self.further:
            if further.model.score_unit != plan.model.score_unit:
                whose = f"the checkpoint {plan.folder}" if plan.folder else "the model"
                raise UserError(
                    f"--ensemble {further.path} is {further.model.kind} and {whose} is {plan.model.kind}, whose scores have no "
                    "common scale; give models of one kind."
                )
            further.check(plan)

    def prepare(self, subject: Subject) -> None:
        self.others = [further.subject(subject) for further in self.further]
        if any(evaluator.ranks for evaluator in self.beside):
            for other in self.others:
                other.check_captions()

    def score(self, subject: Subject) -> None:
        for other in self.others:
            other.forget()
            for evaluator in self.beside:
                if averages(evaluator):
                    evaluator.score(other)

    def figures(self, subject: Subject) -> dict[str, Any]:
        members = [subject, *self.others]
        names = [name for name in subject.scores if all(name in member.scores for member in members)]
        logits = subject.model.averages_sigmoids
        together = replace(subject, scores={name: average([m.scores[name] for m in members], logits) for name in names})
        found: dict[str, Any] = {"members": self.names}
        singles: dict[str, Any] = {}
        for evaluator in filter(averages, self.beside):
            found |= evaluator.headline(together)
            if evaluator.name == "recall":
                singles = {name: evaluator.headline(member)["recalls"] for name, member in zip(self.names, members, strict=True)}
        for other in self.others:
            other.forget()
        return {"ensemble": found | ({"singles": singles} if singles else {})}

    def sources(self) -> dict[str, Any]:
        return {"ensemble": [further.source() for further in self.further]}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        """The single models, then their average in a table of its own: the two are not to be compared as equals."""
        if "ensemble" not in results:
            return None
        ensemble = results["ensemble"]
        title = f"ensemble of {len(ensemble['members'])}"
        parts = []
        if "recalls" in ensemble:
            parts.append(recall_table({f"single: {name}": values for name, values in ensemble["singles"].items()}))
        together = {"recalls": title, "coco_1k": f"{title}, COCO 1K"}
        if sets := {row: ensemble[key] for key, row in together.items() if key in ensemble}:
            parts.append(recall_table(sets))
        if ensemble.get("edits"):
            parts.append(edits_table(ensemble["edits"], f"true above edited caption, {title}"))
        return "\n\n".join(parts) or None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        titles = {"recalls": "Split “{split}”, ensembles", "coco_1k": "COCO 1K, mean of five folds, ensembles"}
        parts = []
        for key, title in titles.items():
            found = [(run, result, result["ensemble"]) for run, result in every(runs) if key in result.get("ensemble", {})]
            entries = [(run, res, of[key], f"average of {', '.join(of['members'])}") for run, res, of in found]
            parts += recall_tables(entries, title)
        return Section("recall", parts)


def averages(evaluator: Evaluator) -> bool:
    """Whether it has a headline, which holds for averaged scores too."""
    return type(evaluator).headline is not Evaluator.headline


def average(members: Sequence[Tensor], logits: bool) -> Tensor:
    """Mean of the members' scores, entry by entry: float64, shaped as each of them.

    Similarities are averaged as they are. Ranking logits have no common scale, so their sigmoids are averaged; in float64,
    since in float32 the sigmoids of large logits fall together, and every tie counts against us.
    """
    total = torch.zeros_like(members[0], dtype=torch.float64)
    for scores in members:
        total += scores.double().sigmoid() if logits else scores.double()
    return total / len(members)


def member_names(folders: Sequence[Path]) -> list[str]:
    """A name for each checkpoint folder: of the run it lies in, with as many parents in front as tell them apart."""
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--ensemble names {path} twice (--checkpoint counts too); give each model once.")
    parts = [(path.parent if path.name == "export" else path).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]  # a run and the 'export' inside it
