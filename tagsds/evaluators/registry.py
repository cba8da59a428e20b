"""The evaluators by name, and how a list of them is made and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from tagsds.errors import UserError, nearest
from tagsds.evaluators.blind import Blind
from tagsds.evaluators.coco_folds import CocoFolds
from tagsds.evaluators.cxc import Cxc
from tagsds.evaluators.eccv import Eccv
from tagsds.evaluators.edits import Edits
from tagsds.evaluators.ensemble import Ensemble
from tagsds.evaluators.likelihood import Likelihood
from tagsds.evaluators.proofread import Proofread
from tagsds.evaluators.protocol import Evaluator, Plan, Subject
from tagsds.evaluators.query_bank import QueryBank
from tagsds.evaluators.recall import Recall
from tagsds.evaluators.rerank import Rerank
from tagsds.evaluators.rescore import Rescore
from tagsds.formats.results import FORMAT, VERSION

EVALUATORS: dict[str, type[Evaluator]] = {
    "recall": Recall,
    "coco-folds": CocoFolds,
    "eccv": Eccv,
    "cxc": Cxc,
    "edits": Edits,
    "blind": Blind,
    "likelihood": Likelihood,
    "proofread": Proofread,
    "ensemble": Ensemble,
    "rerank": Rerank,
    "query-bank": QueryBank,
    "rescore": Rescore,
}


def make_evaluators(choice: Mapping[str, Mapping[str, Any] | None]) -> list[Evaluator]:
    """{name: settings} -> evaluators in the order of EVALUATORS. UserError for unknown names and settings, and for missing ones."""
    for name in choice:
        if name not in EVALUATORS:
            raise UserError(f"there is no evaluator '{name}': {nearest(name, EVALUATORS)}")
    made = [make(EVALUATORS[name], choice[name] or {}) for name in EVALUATORS if name in choice]
    for evaluator in made:
        evaluator.beside = [other for other in made if other is not evaluator]
    return made


def make(kind: type[Evaluator], settings: Mapping[str, Any]) -> Evaluator:
    """One evaluator, its settings checked."""
    known = {f.name: f for f in fields(kind.Settings)}
    for key in settings:
        if key not in known:
            has = nearest(key, known) if known else "it has none."
            raise UserError(f"evaluator '{kind.name}' has no setting '{key}': {has}")
    for key, f in known.items():
        if key not in settings and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"evaluator '{kind.name}' needs its setting '{key}'; see tagsds-evaluate --help for its option.")
    return kind(kind.Settings(**settings))


def check_evaluators(evaluators: Sequence[Evaluator], plan: Plan) -> None:
    """UserError for what can be seen before shards and weights are read."""
    for evaluator in evaluators:
        evaluator.check(plan)


def prepare_evaluators(evaluators: Sequence[Evaluator], subject: Subject) -> None:
    """Once, after `check_evaluators` and before any `run_evaluators`. UserError for what shows only with the corpus in memory."""
    if any(evaluator.ranks for evaluator in evaluators):
        subject.check_captions()
    for evaluator in evaluators:
        evaluator.prepare(subject)


def run_evaluators(evaluators: Sequence[Evaluator], subject: Subject) -> dict[str, Any] | None:
    """The results of a subject with its current weights, without their provenance; None on all ranks but the first. Collective.

    First all scoring, in which the ranks work together; then all figures, on the first rank alone. So an error in a figure never
    leaves the other ranks waiting. No random state is changed and nothing of the model: it is in evaluation mode inside and in
    its former mode outside. So a validation changes no later step of a training. Nothing is kept in the subject.
    """
    subject.forget()
    try:
        for evaluator in evaluators:
            evaluator.score(subject)
        if not subject.world.is_main:
            return None
        results: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        if any(evaluator.ranks for evaluator in evaluators):
            results |= {"images": subject.images, "captions": len(subject.captions)}
            results["captions_per_image"] = subject.captions_per_image
        for evaluator in evaluators:
            results |= evaluator.figures(subject)
        seconds, pairs = (sum(getattr(cost, name) for cost in subject.costs.values()) for name in ("seconds", "pairs"))
        return results | {"seconds": seconds, "pairs_scored": pairs, "pairs_per_second": pairs / max(seconds, 1e-9)}
    finally:
        subject.forget()
